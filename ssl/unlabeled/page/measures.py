"""What the measures of a run are called on its page, what they mean, and which way is good.

Measures that are not listed here, as those of somebody's own method or protocol, appear under their own names.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from unlabeled.report.visuals import Band

LOSS, SCORES, FEATURES, TEACHER, OPTIMIZER, SPEED, OTHERS = (
    "Loss",
    "Scores on labelled images",
    "Features",
    "Teacher and student",
    "Optimizer",
    "Speed",
    "Other measures of the method",
)
GROUPS = (LOSS, SCORES, FEATURES, TEACHER, OTHERS, OPTIMIZER, SPEED)


class Measure(NamedTuple):
    """A measure by its name in `metrics.jsonl`.

    Attributes:
        name: there.
        title: its name on the page.
        group: one of `GROUPS`.
        unit: of its values, or its range; '' = none.
        text: what it means, and which way is good.
        band: of values that are healthy in every run; that of the run's own method goes before it.
        rare: whether it is shown only where it is not 0 all the time.
    """

    name: str
    title: str
    group: str
    unit: str = ""
    text: str = ""
    band: Band | None = None
    rare: bool = False


KNOWN = (
    Measure(
        "loss",
        "Loss",
        LOSS,
        text="What training lowers. Compare its values only between runs of one method and equal settings.",
    ),
    Measure(
        "class_loss", "Loss of whole images", LOSS, text="The part of the loss from class tokens. Lower is better."
    ),
    Measure(
        "patch_loss", "Loss of hidden patches", LOSS, text="The part of the loss from hidden patches. Lower is better."
    ),
    Measure("loss_per_head", "Loss of a head", LOSS, text="The mean over the heads of the sweep. Lower is better."),
    Measure("train_accuracy", "Accuracy in training", LOSS, "%", "On the images of the step itself. Higher is better."),
    Measure("supervised", "Loss of labelled images", LOSS, text="The part of images with labels. Lower is better."),
    Measure("consistency", "Loss of images without labels", LOSS, text="The mean over all, with 0 for those left out."),
    Measure("fairness", "Evenness of classes", LOSS, text="What keeps predictions of all classes apart; at most 0."),
    Measure(
        "passed",
        "Images without labels that are learnt from",
        LOSS,
        "%",
        "Those of which the classifier is sure enough. 0 = they teach nothing.",
    ),
    Measure(
        "pseudo_accuracy", "Right pseudo-labels", LOSS, "%", "Of all images whose labels are hidden. Higher is better."
    ),
    Measure("boxes_found", "Boxes that the teacher finds", TEACHER, text="In a picture without boxes."),
    Measure("boxes_sure", "Boxes that teach classes", TEACHER, text="In a picture without boxes. 0 teaches nothing."),
    Measure("boxes_steady", "Boxes that teach edges", TEACHER, text="In a picture without boxes. 0 teaches nothing."),
    Measure("passed_right", "Right ones that are learnt from", LOSS, "%", "Of all images whose labels are hidden."),
    Measure(
        "pseudo_largest",
        "Largest class of pseudo-labels",
        LOSS,
        "%",
        "100 = all images without labels are taken for one class, a collapse.",
    ),
    Measure("pseudo_entropy", "Entropy of pseudo-labels over classes", LOSS, "nats", "0 = all are of one class."),
    Measure("threshold", "Threshold of the likeliest class", LOSS, "0 to 1", "It follows how sure the classifier is."),
    Measure(
        "explained",
        "Explained share of the targets",
        LOSS,
        "0 to 1",
        "1 minus loss over variance: 0 is a prediction as good as the mean of the targets, 1 a perfect one. Higher is "
        "better.",
    ),
    Measure(
        "target_std",
        "Spread of the targets",
        TEACHER,
        "0 to 1",
        "How the teacher's tokens of different patches differ: 0 = it says the same of all, a collapse.",
    ),
    Measure(
        "of_chance",
        "Loss as a share of blind guessing",
        LOSS,
        "0 to 1",
        "1 = the views of an image are found no better than by chance. Lower is better.",
    ),
    Measure(
        "invariance",
        "Distance between views",
        LOSS,
        text="Of a picture, from each other or their mean. Lower is better.",
    ),
    Measure(
        "sigreg",
        "Distance from a Gaussian",
        LOSS,
        text="Of the embeddings, times the batch (SIGReg). A sample of a Gaussian has about 1. Lower is better.",
    ),
    Measure(
        "of_point",
        "SIGReg over that of a collapse",
        LOSS,
        "",
        "1 = the embeddings of all images are one point, a collapse. Lower is better.",
    ),
    Measure(
        "of_uniform",
        "Loss as a share of that of a blind student",
        LOSS,
        "0 to 1",
        "1 = the student predicts no better than if all images were alike. Lower is better.",
    ),
    Measure("knn", "kNN", SCORES, "%", "Accuracy of nearest neighbours on frozen features. Higher is better."),
    Measure("ncm", "Nearest class mean", SCORES, "%", "Accuracy of class means of frozen features. Higher is better."),
    Measure("linear", "Linear probe", SCORES, "%", "Accuracy of a linear layer on frozen features. Higher is better."),
    Measure(
        "logistic",
        "Logistic regression",
        SCORES,
        "%",
        "Accuracy of logistic regression on frozen features. Higher is better.",
    ),
    Measure(
        "ranpac",
        "Random projection and ridge",
        SCORES,
        "%",
        "Accuracy of ridge regression on a random projection of frozen features. Higher is better.",
    ),
    Measure("fewshot", "Few-shot episodes", SCORES, "%", "Mean accuracy with a few labels a class. Higher is better."),
    Measure("retrieval", "Retrieval", SCORES, "%", "How well images of one class find each other. Higher is better."),
    Measure("segmentation", "Segmentation", SCORES, "%", "A linear head on patch features. Higher is better."),
    Measure(
        "labelfree",
        "Without labels",
        SCORES,
        text="Ranks: the directions in use, higher is mostly better. Alignment and uniformity: lower is better.",
    ),
    Measure("cka", "Similarity of blocks (CKA)", SCORES, "0 to 1", "1 = two blocks say the same."),
    Measure("accuracy", "Accuracy", SCORES, "%", "On the labelled test images. Higher is better."),
    Measure("miou", "Mean IoU", SCORES, "%", "Masks and what is found, over the classes of pixels. Higher is better."),
    Measure("watched", "Watched score", SCORES, text="Early stopping goes by it; nll: lower is better, else higher."),
    Measure("lr", "Learning rate", OPTIMIZER, text="The highest of those that follow the schedule: it warms up first."),
    Measure(
        "grad_norm",
        "Gradient norm",
        OPTIMIZER,
        text="Before clipping. Steady or falling is good; rare peaks are harmless where gradients are clipped, peaks "
        "that grow come before a loss that is not finite.",
    ),
    Measure(
        "skipped",
        "Skipped steps",
        OPTIMIZER,
        "steps so far",
        "Steps with a loss or gradient that was not finite. Best: none.",
        rare=True,
    ),
    Measure("moved", "Distance from the start", OPTIMIZER, text="||W - W0|| / ||W0|| of the encoder: 0 = not moved."),
    Measure(
        "images_per_s",
        "Throughput",
        SPEED,
        "images/s",
        "Of all processes together, evaluations left out. Higher is better.",
    ),
    Measure(
        "data_wait",
        "Waiting for images",
        SPEED,
        "share of the time",
        "How long steps wait for the loader. Lower is better; where it is high, run.workers or data.cache helps.",
        Band(None, 0.1, "Up to a tenth of the time is no loss worth mending."),
    ),
    Measure(
        "effective_rank",
        "Effective rank of the features",
        FEATURES,
        "directions",
        "The directions that features of a batch use: 1 = all images are alike, a collapse. High, or rising, is good.",
    ),
    Measure(
        "feature_std",
        "Spread of the features",
        FEATURES,
        "0 to 1",
        "Standard deviation of unit features x sqrt(D): 1 = spread evenly, 0 = all images are alike, a collapse.",
    ),
    Measure(
        "positive",
        "Similarity of two views",
        FEATURES,
        "cosine",
        "Of views of one image. Rising is good, unless negatives follow.",
    ),
    Measure("negative", "Similarity of strangers", FEATURES, "cosine", "Of views of different images. Near 0 is good."),
    Measure(
        "agreement",
        "Agreement of views",
        FEATURES,
        "0 to 1",
        "The share of the embeddings' variance that is between images: 0 = views of one image are as far apart as any, "
        "1 = they are equal. Higher is better.",
    ),
    Measure(
        "told_apart",
        "Views above strangers",
        FEATURES,
        "cosine",
        "Similarity of two views less that of strangers. High is good; near 0 all images get the same prediction.",
    ),
    Measure(
        "alignment", "Alignment", FEATURES, "0 to 4", "Squared distance of two views of an image. Lower is better."
    ),
    Measure(
        "uniformity",
        "Uniformity",
        FEATURES,
        "-4 to 0",
        "How evenly features fill the sphere. Lower is better; 0 = a collapse.",
    ),
    Measure(
        "projection_std",
        "Spread of the projections",
        FEATURES,
        "0 to 1",
        "As the spread of the features, of what is predicted. Near 1 is good, 0 = a collapse.",
    ),
    Measure(
        "on_diagonal",
        "Correlation of two views",
        FEATURES,
        "-1 to 1",
        "Of a feature with itself in the other view, mean over features. Rising towards 1 is good.",
    ),
    Measure(
        "off_diagonal",
        "Correlation of different features",
        FEATURES,
        "0 to 1",
        "Root mean square over pairs of features. Falling towards 0 is good; unrelated views have 1/sqrt(batch).",
    ),
    Measure(
        "variance",
        "Missing variance",
        LOSS,
        "0 to 1",
        "How far the deviations of features lie below 1. Falling to 0 is good; near 1 all images are alike.",
    ),
    Measure(
        "covariance",
        "Covariance of different features",
        LOSS,
        text="Sum of squares over the number of features, of both views. Lower is better.",
    ),
    Measure(
        "teacher_entropy",
        "Entropy of the teacher",
        TEACHER,
        "nats",
        "Of its answer to one image: ln K = it says the same of all images, a collapse. It falls as training goes on.",
    ),
    Measure(
        "mean_entropy",
        "Entropy of the mean answer",
        TEACHER,
        "nats",
        "Over all images of a batch: 0 = one prototype takes everything, a collapse. High is good.",
    ),
    Measure(
        "kl", "Student to teacher (KL)", TEACHER, "nats", "How far the student is from its teacher. 0 = they agree."
    ),
    Measure("entropy", "Entropy of a prediction", TEACHER, "nats", "Of one image. It falls as training goes on."),
    Measure(
        "memax",
        "Lack of entropy of the mean prediction",
        TEACHER,
        "nats",
        "0 = all prototypes are used equally, ln K = one takes everything. Lower is better.",
    ),
    Measure("compression", "Compression", TEACHER, "-1 to 1", "Mean cosine of student and teacher. 1 = they agree."),
    Measure("coding_rate", "Coding rate", TEACHER, text="How many directions vectors fill. Higher is better."),
    Measure(
        "spread", "Coding rate over that of equal vectors", TEACHER, text="1 = all vectors are equal. Higher is better."
    ),
    Measure(
        "kl_patches",
        "Student to teacher, of patches (KL)",
        TEACHER,
        "nats",
        "How far the student's similarities of patches are from its teacher's. 0 = they agree.",
    ),
    Measure("prototypes", "Prototypes in use", TEACHER, "share", "Of those that a batch can use. Higher is better."),
)
BY_NAME = {measure.name: measure for measure in KNOWN}


def measure(name: str, score: bool) -> Measure:
    """The measure of a name; `score` = it is of an evaluation. Names that begin with a known one belong to it."""
    if name in BY_NAME:
        return BY_NAME[name]
    group = SCORES if score else LOSS if name.endswith("loss") else OTHERS
    known = BY_NAME.get(name.split("_")[0]) if score else None
    rest = name.partition("_")[2].replace("_", " ")
    return (
        known._replace(name=name, title=f"{known.title}: {rest}")
        if known
        else Measure(name, name.replace("_", " "), group)
    )


def ordered(names: Iterable[tuple[str, bool]]) -> Iterator[Measure]:
    """The measures of (name, whether it is of an evaluation), by group; known ones first, in their order."""
    order = {one.name: place for place, one in enumerate(KNOWN)}
    found = [measure(*name) for name in dict.fromkeys(names)]
    last = len(order)
    yield from sorted(
        found, key=lambda one: (GROUPS.index(one.group), order.get(one.name, order.get(one.name.split("_")[0], last)))
    )
