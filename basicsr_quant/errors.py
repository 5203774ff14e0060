"""The one exception for mistakes that a user can mend."""

from __future__ import annotations


class UserError(Exception):
    """One line that says what is wrong, where (file, key, layer), and what to do.

    Entry points print it without a traceback and exit with code 2.
    """


class WriteError(UserError):
    """The operating system refused to write: no space, a limit, a read-only place."""

    @classmethod
    def of(cls, what: str, error: OSError, advice: str) -> WriteError:
        """Return the error with its line.

        Args:
            what: What was to be written.
            error: The system's answer.
            advice: What to do.
        """
        return cls(f"cannot write {what}: {error.strerror or error}; {advice}")


_OUT_OF_MEMORY = ("out of memory", "not enough memory", "allocate memory", "Unable to allocate", "Failed to allocate",
                  "Insufficient memory", "bad_alloc", "bad allocation", "ALLOC_FAILED",
                  "Storage size calculation overflowed")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out: Python's, NumPy's, OpenCV's, torch's on the CPU or on a GPU."""
    return isinstance(error, MemoryError) or any(sign in str(error) for sign in _OUT_OF_MEMORY)
