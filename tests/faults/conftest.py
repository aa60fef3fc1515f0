"""What tests of faults use of the other tests'."""

from tests.api.conftest import make_nifti, nifti  # noqa: F401
