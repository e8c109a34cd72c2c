# SPDX-License-Identifier: Apache-2.0
"""Counted cost of every config of the repository, for the README's table.

    python benchmarks/costs.py [CONFIG ...]

Updates ``benchmarks/results/costs.json``. Counts do not depend on the machine.
"""

from __future__ import annotations

import json
from pathlib import Path

import click

from prmim_adapters.accounting import make_batch
from prmim_adapters.accounting.report import compare
from prmim_adapters.accounting.variants import build_variants
from prmim_adapters.openmmlab.models import load_config

ROOT = Path(__file__).parents[1]
RESULT = ROOT / 'benchmarks' / 'results' / 'costs.json'


@click.command()
@click.argument('configs', nargs=-1, type=click.Path(exists=True))
@click.option('--batch-size', default=2, show_default=True)
def main(configs: tuple[str, ...], batch_size: int) -> None:
    for path in configs or sorted(map(str, (ROOT / 'configs' / 'mmpretrain').glob('*_prmim_*.py'))):
        config = load_config(path)
        variants = build_variants(config)
        batch = make_batch(config, variants[0].model, batch_size=batch_size)
        report = compare(variants, batch, config.optim_wrapper.optimizer)
        found = json.loads(RESULT.read_text()) if RESULT.exists() else {}
        found[Path(path).stem] = report.to_dict()
        RESULT.write_text(json.dumps(dict(sorted(found.items())), indent=1) + '\n')
        print(f'{path}\n\n{report.markdown()}\n')


if __name__ == '__main__':
    main()
