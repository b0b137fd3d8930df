"""Every file that comes of a definition, by target; `raypft cluster render` writes them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from raypft.cluster.definition import Definition
from raypft.cluster.render import kuberay, launcher
from raypft.errors import UserError, nearest

LAUNCHED = {"ray-up": launcher.launcher}
TARGETS: dict[str, dict[str, Callable[[Any], dict[str, Any]]]] = {
    "local": {},
    "fake": {"autoscaler": launcher.fake},
    "aws": LAUNCHED,
    "gcp": LAUNCHED,
    "azure": LAUNCHED,
    "onprem": LAUNCHED,
    "kubernetes": {
        "rayjob": kuberay.rayjob,
        "raycluster": kuberay.raycluster,
        "raycronjob": kuberay.raycronjob,
        "kueue": kuberay.kueue,
        "pvc": kuberay.pvc,
        "networkpolicy": kuberay.networkpolicy,
    },
}
"""Kind of a definition to what can be made of it."""


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        """Repeated parts are written out: KubeRay's users read these files."""
        return True


def rendered(definition: Definition, target: str | None = None) -> dict[str, str]:
    """Target to the text of its file; all targets where none is named.

    Raises:
        UserError: nothing of that name is made of a definition of this kind.
    """
    targets = TARGETS[definition.kind]
    if target is not None and target not in targets:
        raise UserError(
            f'target "{target}": nothing of that name for kind {definition.kind}; {nearest(target, targets)}'
        )
    chosen = targets if target is None else {target: targets[target]}
    head = f"# Made by: raypft cluster render cluster/{definition.kind}.yaml. Change that file, not this one.\n"
    return {
        name: head + yaml.dump(make(definition), Dumper=_Dumper, sort_keys=False, width=10**6)
        for name, make in chosen.items()
    }


def write(definition: Definition, stem: str, folder: Path, target: str | None = None) -> list[Path]:
    """Write `STEM.TARGET.yaml` files into a folder; their paths."""
    texts = rendered(definition, target)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{stem}.{name}.yaml" for name in texts]
    for path, text in zip(paths, texts.values(), strict=True):
        path.write_text(text, encoding="utf-8")
    return paths
