"""What these tests use of the others."""

from tests.api.conftest import make_nifti, nifti, start_gateway  # noqa: F401
from tests.faults.small_disk import small_disk  # noqa: F401
