"""Everything that touches DICOM, disk, database or network."""
