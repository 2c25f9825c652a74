"""What the repository's own tests need: pytester, which runs real pytest sessions in folders of their own."""

pytest_plugins = ["pytester"]
