"""The hot loops: fit, encode, pack. Imports nothing of the other packages."""
