from __future__ import annotations

import pytest
from pydicom.datadict import keyword_for_tag, tag_for_keyword
from pydicom.tag import Tag

from services.deidentification.basic_profile import Treatment, table, treatment_of

# Written down from PS3.15 Table E.1-1 apart from the table in the package: what occurs in CT, SEG and SR.
_EXPECTED = {
    Treatment.REMOVE: """AcquisitionComments AdditionalPatientHistory AdmittingDiagnosesCodeSequence
        AdmittingDiagnosesDescription AuthorObserverSequence ContributionDescription
        CustodialOrganizationSequence DerivationDescription DigitalSignaturesSequence FrameComments GantryID
        IconImageSequence ImageComments InstitutionAddress InstitutionalDepartmentName IssuerOfPatientID
        NameOfPhysiciansReadingStudy OriginalAttributesSequence OtherPatientIDs OtherPatientNames PatientAddress
        PatientAge PatientBirthTime PatientComments PatientSize PatientTelephoneNumbers PatientWeight
        PerformedProcedureStepDescription PerformedProcedureStepID PerformedProcedureStepStartDate
        PerformingPhysicianName PhysiciansOfRecord ReferencedPatientSequence RequestAttributesSequence
        RequestingPhysician RequestingService SeriesDescription StudyDescription StudyComments TimezoneOffsetFromUTC
        Occupation DataSetTrailingPadding""",
    Treatment.EMPTY: """AccessionNumber AcquisitionContextSequence AcquisitionDate AcquisitionTime PatientBirthDate
        PatientName PatientSex ReferringPhysicianName RequestedProcedureDescription StudyDate StudyID StudyTime""",
    Treatment.DUMMY: """AcquisitionDateTime ContentCreatorName ContentDate ContentSequence ContentTime
        ContrastBolusAgent DeviceSerialNumber InstanceCreationDate InstitutionName OperatorsName PatientID PersonName
        ProtocolName SeriesDate SeriesTime StationName VerifyingObserverName VerifyingOrganization""",
    Treatment.NEW_UID: """DeviceUID DimensionOrganizationUID FrameOfReferenceUID InstanceCreatorUID
        IrradiationEventUID ReferencedFrameOfReferenceUID ReferencedSOPInstanceUID SOPInstanceUID SeriesInstanceUID
        StudyInstanceUID SynchronizationFrameOfReferenceUID TrackingUID UID""",
    Treatment.CLEAN_ITEMS: "ReferencedImageSequence SourceImageSequence",
    Treatment.KEEP: """ConvolutionKernel ImagePositionPatient KVP Manufacturer ManufacturerModelName Modality PixelData
        SegmentLabel SliceThickness SoftwareVersions""",
}


@pytest.mark.parametrize("treatment", list(Treatment))
def test_what_occurs_in_ct_seg_and_sr_is_treated_as_the_standard_says(treatment: Treatment) -> None:
    for keyword in _EXPECTED[treatment].split():
        tag = tag_for_keyword(keyword)
        assert tag is not None, keyword
        assert treatment_of(Tag(tag)) is treatment, keyword


def test_the_table_is_whole() -> None:
    assert len(table()) == 652
    assert sum(bool(keyword_for_tag(tag)) for tag in table()) > 600


@pytest.mark.parametrize("tag", [0x00090010, 0x00091001, 0x50003000, 0x60003000, 0x601E4000])
def test_private_attributes_overlays_and_curves_are_removed(tag: int) -> None:
    assert treatment_of(Tag(tag)) is Treatment.REMOVE
