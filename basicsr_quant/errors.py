"""The one exception for mistakes that a user can mend."""


class UserError(Exception):
    """One line that says what is wrong, where (file, key, layer), and what to do.

    Entry points print it without a traceback and exit with code 2.
    """
