"""``python -m fimlora_client.cli`` is the `fimlora` command."""

from fimlora_client.cli.app import main

if __name__ == "__main__":
    main()
