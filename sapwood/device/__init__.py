"""The devices that there are, each in a file of its own: what it is, what it can do, what it has left.

Nothing elsewhere asks what kind of device it runs on: it asks for an ability by its name, or lets the device do it.
"""

from sapwood.device.base import Device, Mark
from sapwood.device.find import abilities_of, find, probe

__all__ = ["Device", "Mark", "abilities_of", "find", "probe"]
