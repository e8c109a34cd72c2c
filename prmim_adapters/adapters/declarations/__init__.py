# SPDX-License-Identifier: Apache-2.0
"""Adapters that are declarations: frameworks whose decoder or encoder is a list of blocks.

One module for each field, imported when such a model is attached. A name that several repositories
share, 'name (whose)', says by ``meant`` which class it is for. Class names, shapes and signatures are
facts of the repositories that the modules name; nothing of their text is here.
"""
