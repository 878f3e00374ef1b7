"""Speed and memory, measured: `python -m bench [name ...]`. Not part of the tests; nothing here decides anything."""
