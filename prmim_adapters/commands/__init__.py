# SPDX-License-Identifier: Apache-2.0
"""One file for each command of ``prmim``; ``<name>.py`` defines the click command ``<name>``."""
