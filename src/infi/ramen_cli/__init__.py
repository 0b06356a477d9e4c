"""The ``ramen`` command: everything an operator does with queues and collectors.

    main        the group of commands; each is imported when it is called, so that ``ramen status`` does not load a web server
    commands/   one module for each command; they say what an API call found, and decide the exit code
    _options    the options that commands share: where the configuration and the queue are
    _output     tables, JSON and numbers for people
    _exit       the exit codes

Everything a command does is a call of ``infi.ramen_client`` or ``infi.ramen_server`` that a program can make, too.
"""
