"""``python -m infi.ramen_cli`` is ``ramen``."""

from infi.ramen_cli.main import main

main()
