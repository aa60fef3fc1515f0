"""Phantoms: synthetic CT pulmonary angiograms whose emboli are known, to train, to test and to show with.

Read `phantom.py` first; it puts together what each of the other files makes.
"""

from imaging.phantom.anatomy import Anatomy
from imaging.phantom.phantom import Phantom, make_phantom

__all__ = ["Anatomy", "Phantom", "make_phantom"]
