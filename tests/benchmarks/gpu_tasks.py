# SPDX-License-Identifier: Apache-2.0
"""Tasks for the process that runs the stages of benchmarks/gpu.py, by their dotted path."""

from __future__ import annotations

import os
import time


def quick(context, value=1):
    return {'value': value, 'dry': context.dry, 'left': context.seconds_left}


def hang(context):
    context.keep({'half': True})
    time.sleep(60)


def crash(context):
    os._exit(3)


def fail(context):
    context.keep({'before': 1})
    raise RuntimeError('the device said no\nand more')


def needs(context):
    try:
        import no_such_package
    except ImportError as error:
        raise ImportError('some modules could not be imported') from error
    return {'version': no_such_package.__version__}
