"""The coded terms of audit messages, by their names in the Standard (PS3.16 CID 400, 401, 402, 404 and 405)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class AuditCode:
    code: str
    meaning: str
    system: str = "DCM"


# CID 400 Audit Event ID
APPLICATION_ACTIVITY = AuditCode("110100", "Application Activity")
AUDIT_LOG_USED = AuditCode("110101", "Audit Log Used")
BEGIN_TRANSFERRING = AuditCode("110102", "Begin Transferring DICOM Instances")
INSTANCES_TRANSFERRED = AuditCode("110104", "DICOM Instances Transferred")
STUDY_DELETED = AuditCode("110105", "DICOM Study Deleted")
EXPORT = AuditCode("110106", "Export")
IMPORT = AuditCode("110107", "Import")
PROCEDURE_RECORD = AuditCode("110111", "Procedure Record")
QUERY = AuditCode("110112", "Query")
SECURITY_ALERT = AuditCode("110113", "Security Alert")
USER_AUTHENTICATION = AuditCode("110114", "User Authentication")

# CID 401 Audit Event Type, CID 403 for alerts
APPLICATION_START = AuditCode("110120", "Application Start")
APPLICATION_STOP = AuditCode("110121", "Application Stop")
LOGIN = AuditCode("110122", "Login")
NODE_AUTHENTICATION = AuditCode("110126", "Node Authentication")
SECURITY_CONFIGURATION = AuditCode("110129", "Security Configuration")
RESTRICTED_FUNCTION = AuditCode("110132", "Use of Restricted Function")

# CID 402 Audit Active Participant Role ID
APPLICATION = AuditCode("110150", "Application")
APPLICATION_LAUNCHER = AuditCode("110151", "Application Launcher")
DESTINATION = AuditCode("110152", "Destination Role ID")
SOURCE = AuditCode("110153", "Source Role ID")
DESTINATION_MEDIA = AuditCode("110154", "Destination Media")
SOURCE_MEDIA = AuditCode("110155", "Source Media")

# CID 404 Audit Participant Object ID Type
PATIENT_NUMBER = AuditCode("2", "Patient Number", "RFC-3881")
URI = AuditCode("12", "URI", "RFC-3881")
STUDY_INSTANCE_UID = AuditCode("110180", "Study Instance UID")
NODE_ID = AuditCode("110182", "Node ID")

# CID 405 Media Type Code
URI_MEDIA = AuditCode("110037", "URI")
DISK = AuditCode("110030", "USB Disk Emulation")
