"""The domain: CT volumes, lesions, findings, metrics, phantoms. No I/O, no torch, no DICOM objects."""
