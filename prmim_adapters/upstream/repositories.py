# SPDX-License-Identifier: Apache-2.0
"""The original repositories: pinned commit, and the lines that their training script gains.

Nothing of a repository's text is here: lines are inserted by number, and a git blob hash says that
the file is the one that the numbers are for.
"""

from __future__ import annotations

from dataclasses import dataclass

IMPORT = 'import prmim_adapters.upstream as prmim'
ARGUMENTS = '    prmim.add_arguments(parser)'


@dataclass(frozen=True)
class Repository:
    """One original repository.

    Attributes:
        name: of the folder in ``patches/``.
        url: where it is.
        commit: the commit that this package is tested against.
        licence: of its code.
        script: path of the training script.
        blob: git blob hash of the script at that commit.
        insertions: line number to the line inserted after it, ascending.
        seams: path to blob hash of the files whose classes the adapter extends.
    """

    name: str
    url: str
    commit: str
    licence: str
    script: str
    blob: str
    insertions: tuple[tuple[int, str], ...]
    seams: tuple[tuple[str, str], ...]

    @property
    def patch(self) -> str:
        """The insertions as a diff without context, for ``git apply --unidiff-zero``."""
        lines = [f'--- a/{self.script}', f'+++ b/{self.script}']
        for added, (after, line) in enumerate(self.insertions, start=1):
            lines += [f'@@ -{after},0 +{after + added} @@', f'+{line}']
        return '\n'.join(lines) + '\n'


REPOSITORIES = (
    Repository(
        name='mae',
        url='https://github.com/facebookresearch/mae',
        commit='efb2a8062c206524e35e47d04501ed4f544c0ae8',
        licence='CC-BY-NC-4.0',
        script='main_pretrain.py',
        blob='58a18c5151b26b1ddc4be62ccdb963a27fdc249e',
        insertions=((20, IMPORT), (39, ARGUMENTS), (156, '    prmim.attach(model)')),
        seams=(('models_mae.py', '880e28f8225fa9b56d7ba2963c2cb2c9d6f3d896'),),
    ),
    Repository(
        name='simmim',
        url='https://github.com/microsoft/SimMIM',
        commit='d3e29bcac950b83edc34ca33fe4404f38309052c',
        licence='MIT',
        script='main_simmim.py',
        blob='e4365c9ebe141911094b0d8522d5549d1aacd889',
        insertions=((17, IMPORT), (36, ARGUMENTS), (72, '    prmim.attach(model)')),
        seams=(
            ('models/simmim.py', '297f35fc18a1ebd8a765bc22652c27c1c7442497'),
            ('models/vision_transformer.py', '0820ddcbac52758cf8cdd1c6fbe7a6810bba5d11'),
            ('models/swin_transformer.py', '56783400cad7bb32ec5b0f116f8f187bb9f91b67'),
        ),
    ),
    Repository(
        name='convnextv2',
        url='https://github.com/facebookresearch/ConvNeXt-V2',
        commit='2553895753323c6fe0b2bf390683f5ea358a42b9',
        licence='MIT',
        script='main_pretrain.py',
        blob='ae73b0c84f361730294c2e44233fec8413e8a7ca',
        insertions=((20, IMPORT), (34, ARGUMENTS), (153, '    prmim.attach(model)')),
        seams=(
            ('models/fcmae.py', 'b821fa45ae7c9ffd93966f9f5c3a3684aee6e8e0'),
            ('models/convnextv2.py', 'd83ddead07acf8df5c23599eb53f8df569488e1c'),
        ),
    ),
    Repository(
        name='ibot',
        url='https://github.com/bytedance/ibot',
        commit='da316d82636a7a7356835ef224b13d5f3ace0489',
        licence='Apache-2.0',
        script='main_ibot.py',
        blob='06694ab8fb756969d08b09c6cf23812f323740b9',
        insertions=((21, IMPORT), (33, ARGUMENTS), (245, '    prmim.attach(student)')),
        seams=(
            ('models/vision_transformer.py', '3c491f8425a70b49c522d8f9a381774095e4c1e1'),
            ('utils.py', '13fab94d5a9b36da422d6f1135c85bbc7cdb99fd'),
        ),
    ),
)
