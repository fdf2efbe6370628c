"""What the recipes share.

Standard library only: they run on Debian's python3 before any virtual environment exists.
"""
