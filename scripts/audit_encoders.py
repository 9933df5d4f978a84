"""Measure what the swap of hidden activations finds in every encoder, and write segexp/models/swapped.csv.

    python scripts/audit_encoders.py [--check | --page | MODEL ENCODER]

Every encoder of smp and one or more of each family of timm, with the first architecture that takes it, and every
architecture with one encoder: built, swapped for prelu and audited in training and in evaluation. Only shapes are
computed; ten minutes of one core do. docs/encoders.md, the same table for readers, is written too; --page writes it
alone. --check measures everything and only says what differs; a model and an encoder are measured and printed.
"""

import functools
import re
import sys
import warnings
from collections import Counter
from pathlib import Path

import torch

from segexp.activations.hidden import make_hidden
from segexp.models.architectures import ARCHITECTURES, SWAPPED, BackboneConfig, common_size, encoder_names, swapped
from segexp.models.build import build_network, learned_parameters
from segexp.models.swap import SwapReport, audit, swap_hidden
from segexp.models.trace import FAILURES
from segexp.records.formatting import csv_table, markdown_table

PAGE = Path(__file__).resolve().parent.parent / "docs" / "encoders.md"

ACTIVATION = "prelu"
"""No encoder listed here has it, and each module has a weight of its own, so that shared modules would be counted."""

TIMM = """
resnet18 resnet34 resnet18d resnet50_gn seresnet18 legacy_seresnet18 skresnet18 ecaresnet26t eca_resnet33ts
gcresnet33ts bat_resnext26ts lambda_resnet26t sebotnet33ts_256 botnet26t_256 halonet26t resnest14d res2net50_26w_4s
resnetv2_50 resnetv2_50d_evos resnetv2_50d_frn nf_resnet50 nfnet_f0 dm_nfnet_f0 eca_nfnet_l0 tresnet_m densenet121
vgg11 dla34 darknet53 cspdarknet53 cs3darknet_s cs3se_edgenet_x vovnet39a ese_vovnet19b_dw ese_vovnet39b_evos
selecsls42b gernet_s repvgg_a0 hgnet_tiny hgnetv2_b0 hrnet_w18_small rdnet_tiny xception41 xception65p pnasnet5large
nasnetalarge regnety_002 regnetv_040 regnetz_b16 efficientnet_b0 tf_efficientnetv2_b0 efficientnet_x_b3 tinynet_a
mixnet_s mnasnet_050 hardcorenas_a fbnetc_100 lcnet_050 rexnet_100 mobilenetv3_small_050 mobilenetv3_small_100
mobilenetv4_conv_small mobilenetv5_base mobileone_s0 ghostnet_100 ghostnetv2_100 repghostnet_050 fasternet_t0 starnet_s1
mobilevit_xxs mobilevitv2_050 efficientvit_b0 repvit_m0_9 fastvit_t8 edgenext_xx_small convnext_atto convnextv2_atto
convnext_zepto_rms inception_next_atto mambaout_femto focalnet_tiny_srf poolformer_s12 poolformerv2_s12 convformer_s18
caformer_s18 pvt_v2_b0 twins_svt_small davit_tiny gcvit_xxtiny nextvit_small swiftformer_xs efficientformer_l1
efficientformerv2_s0 tiny_vit_5m_224 hiera_tiny_224 mvitv2_tiny swin_tiny_patch4_window7_224 swinv2_tiny_window8_256
coat_tiny coatnet_nano_rw_224 maxvit_tiny_tf_224 vit_tiny_patch16_224 vit_small_patch32_224 deit_tiny_patch16_224
"""
"""Encoders of timm of many families; timm has more than a thousand."""

COLUMNS = {
    "model": "model",
    "encoder": "encoder",
    "size": "image, px",
    "call_sites": "call sites",
    "functions": "of them functions",
    "shared_split": "shared modules",
    "unreached": "never called",
    "gates_kept": "gates",
    "escaped": "escaped",
}
"""Columns of the table, and their headings on the page; besides, the table has the number of weights of prelu."""

TEXT = """# Encoders and the swap of hidden activations

<!-- made by scripts/audit_encoders.py -->
`hidden_activation=NAME` replaces every hidden activation of a network, and two forward passes, in training and in
evaluation, are watched for what is left. Here this was done with `prelu` for every encoder of
segmentation-models-pytorch (smp), many of timm (`tu-*`), and every architecture. {closed} of the {smp} encoders of smp
and {timm_closed} of the {timm} of timm close: nothing escaped. What does not close is refused before training, with the
operators named here.

Call sites: activations applied in one forward pass, each by a module of its own afterwards. Functions: those of them
that were a call in a forward method, no module. Shared modules: modules that the libraries use at several call sites.
Never called: activation modules of the network that no pass comes by. Gates: the sigmoids and softmaxes of squeeze and
excitation and of attention, and the rectifiers in the kernels of linear attention; they stay.

Other encoders of timm are audited just the same when a run starts.

{table}
"""


def row(model: str, encoder: str) -> dict[str, str]:
    """One line of the table, for images of the first size that the network takes."""
    for size in (common_size(model, ARCHITECTURES[model].defaults, encoder), 224, 256):
        try:
            report, weights = audited(model, encoder, size)
        except FAILURES as error:
            failure = error
        else:
            facts = {"model": model, "encoder": encoder, "size": size, "call_sites": report.replaced}
            facts |= {key: getattr(report, key) for key in ("functions", "shared_split", "unreached", "gates_kept")}
            facts |= {"weights": weights, "escaped": in_short(report.escaped)}
            return {key: str(value) for key, value in facts.items()}
    raise failure


def audited(model: str, encoder: str, size: int) -> tuple[SwapReport, int]:
    """What the audit finds after the swap, and the number of weights that came with the call sites."""
    # Mix transformers read numbers while they are built, which the meta device does not hold.
    with torch.device("cpu" if encoder.startswith("mit_") else "meta"):
        network = build_network(model, ARCHITECTURES[model].defaults, BackboneConfig(encoder, None), 3, 2, 0)
    swap_hidden(network, ACTIVATION, functools.partial(make_hidden, ACTIVATION, {}), "both", 3, size)
    report, _ = audit(network, 3, size)
    return report, len(learned_parameters(network))


def in_short(escaped: dict[str, int]) -> str:
    """How often which operator of which class, wherever it is."""
    kinds: Counter[str] = Counter()
    for where, number in escaped.items():
        kinds[re.sub(r" \(.*\)$", "", where)] += number
    return "; ".join(f"{number} x {what}" for what, number in kinds.items())


def pairs() -> list[tuple[str, str]]:
    """Models and encoders of the table, in its order."""
    encoders = [*encoder_names(), *(f"tu-{name}" for name in TIMM.split())]
    first = [(next(model for model in ARCHITECTURES if takes(model, encoder)), encoder) for encoder in encoders]
    with_resnet = [
        (name, "resnet18") for name, entry in ARCHITECTURES.items() if not entry.unsupported("resnet18", entry.defaults)
    ]
    return list(dict.fromkeys([*first, *with_resnet]))


def takes(model: str, encoder: str) -> bool:
    """Whether the architecture takes the encoder at its default options."""
    entry = ARCHITECTURES[model]
    return entry.unsupported(encoder, entry.defaults) is None


def page(rows: list[dict[str, str]]) -> str:
    """The table for readers."""
    encoders: dict[bool, dict[str, bool]] = {True: {}, False: {}}
    for line in rows:
        of_timm = encoders[line["encoder"].startswith("tu-")]
        of_timm[line["encoder"]] = of_timm.get(line["encoder"], True) and not line["escaped"]
    return TEXT.format(
        closed=sum(encoders[False].values()),
        smp=len(encoders[False]),
        timm_closed=sum(encoders[True].values()),
        timm=len(encoders[True]),
        table=markdown_table([{heading: line[key] for key, heading in COLUMNS.items()} for line in rows]),
    )


def main(words: list[str]) -> int:
    """Exit code 1 when --check finds a difference."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    if words and not words[0].startswith("--"):
        print(row(*words))
        return 0
    if words != ["--page"]:
        measured = [row(*pair) for pair in pairs()]
        if words == ["--check"]:
            differing = [line for line in measured if line not in swapped()]
            print("\n".join(f"differs: {line}" for line in differing), file=sys.stderr)
            return int(bool(differing) or len(measured) != len(swapped()))
        SWAPPED.write_text(csv_table(measured), encoding="utf-8")
        swapped.cache_clear()
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page(list(swapped())), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
