"""DCLIP with what its released code trains, which is not what the paper says it trains (arXiv 2505.21549).

    clipworks run dclip_released --set init=ViT-B-32:openai --set pairs=FOLDER

Of the image tower attention's projections and the last one train, its MLPs, norms and embeddings do not; the whole text
tower trains too, and a cosine to the frozen CLIP's captions holds it. All else is recipe `dclip`'s.
"""

from pipelines.recipe import Recipe
from pipelines.recipes._dclip import AS_RELEASED, student, teacher
from pipelines.recipes._method import method_recipe


def recipe() -> Recipe:
    """Teacher and student, before and after."""
    return method_recipe(
        name="dclip_released",
        title="DCLIP: distilled from a cross-modal teacher, trained as the released code does",
        purpose="DCLIP (2505.21549) with the parameters that its released code trains: attention's projections of the "
        "image tower, and the text tower",
        expect="as recipe dclip",
        more={"teacher": teacher()},
        trained={"dclip": student(trainable=AS_RELEASED)},
    )
