"""DCLIP: a cross-modal teacher over regions and words, distilled into the image tower (arXiv 2505.21549).

    clipworks run dclip
    clipworks run dclip --set init=ViT-B-32:openai --set pairs=FOLDER

Regions are a grid of 2 x 2 tiles, which any picture has. Where pairs have boxes in metadata field `boxes`, as
scenes do (centre x, centre y, width, height in fractions of the picture), these can take their place:

    --set stages.teacher.phases.fuse.view.regions.regions=boxes \\
    --set stages.dclip.phases.distil.view.regions.regions=boxes

The image tower trains and the text tower is frozen, as paper and README say; `dclip_released` is what the released code
does. In the paper: about 67,500 pairs, YOLOv8x boxes; teacher with Adam at 1e-5, 5 epochs for B/16 and 1 for L/14,
batches of 32 to 64; student with AdamW at 1e-6, batches of 32 accumulated 4 times (set chunk_pairs: here the contrast
sees the whole batch), gradient norm at most 0.5, 2 epochs. For a pretrained checkpoint take rates of that size:

    --set stages.teacher.phases.fuse.optimizer.lr=1e-5 --set stages.dclip.phases.distil.optimizer.lr=1e-6
"""

from pipelines.recipe import Recipe
from pipelines.recipes._dclip import student, teacher
from pipelines.recipes._method import method_recipe


def recipe() -> Recipe:
    """Teacher and student, before and after."""
    return method_recipe(
        name="dclip",
        title="DCLIP: distilled from a cross-modal teacher",
        purpose="Move a CLIP's image tower to vectors that regions and caption words agree on (DCLIP, 2505.21549); "
        "the text tower stays",
        expect="the paper: better retrieval at about 94 % of the zero-shot accuracy; measured here: methods show dclip",
        more={"teacher": teacher()},
        trained={"dclip": student()},
    )
