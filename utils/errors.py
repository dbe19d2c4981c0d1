"""Errors that a user can fix."""


class UserError(Exception):
    """Bad input. The message is one line (or one line per problem) that names the fix.

    ``run.py`` prints the message without a traceback and exits with status 2.
    """
