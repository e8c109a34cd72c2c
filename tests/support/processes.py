# SPDX-License-Identifier: Apache-2.0
"""Functions of test files run in processes of their own.

They are forked from a server that has the framework imported, which spares each its start, and that,
unlike the process of the tests, has never run autograd: its threads survive no fork.
"""

import multiprocessing
import runpy

from torch.multiprocessing import start_processes

multiprocessing.set_forkserver_preload(['mmpretrain', 'prmim_adapters.openmmlab'])
SERVER = multiprocessing.get_context('forkserver')


def call(file, name, *args):
    """Run a function of a test file, which the process cannot import by name."""
    runpy.run_path(file)[name](*args)


def _call_as_rank(rank, file, name, args):
    call(file, name, rank, *args)


def on_two_processes(function, *args):
    """``function(rank, *args)`` in two processes; the error of the first that fails."""
    work = function.__code__.co_filename, function.__name__, args
    start_processes(_call_as_rank, args=work, nprocs=2, start_method='forkserver')
