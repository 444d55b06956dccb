"""The command line, one command a file: options, messages and exit statuses; no logic.

``options`` declares what several commands take, ``opening`` opens the dump that they name, ``terminal`` ends them.
"""
