"""Locks and connections after a fork: the child process starts without them."""

import os
import weakref
from abc import ABC, abstractmethod
from typing import ClassVar


class Forkable(ABC):
    """Starts anew in a process that was forked, where the threads are missing that held locks and connections."""

    _living: ClassVar[weakref.WeakSet["Forkable"]] = weakref.WeakSet()

    def __init__(self) -> None:
        self._living.add(self)
        self.forget_threads()

    @abstractmethod
    def forget_threads(self) -> None:
        """Hold what nobody else holds."""

    @classmethod
    def all_forget_threads(cls) -> None:
        """After a fork, in the child."""
        for each in cls._living:
            each.forget_threads()


os.register_at_fork(after_in_child=Forkable.all_forget_threads)
