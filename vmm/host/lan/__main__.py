"""The switch process."""

import sys

from vmm.host.lan.switch import main

sys.exit(main(sys.argv[1:]))
