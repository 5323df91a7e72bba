# the names that `__init__.py` imports when they are asked for, for type checkers
from unlabeled.backbone.weights import load_encoder as load_encoder
from unlabeled.errors import Stopped as Stopped
from unlabeled.errors import UserError as UserError
from unlabeled.interface.model import Model as Model
from unlabeled.interface.model import load as load
from unlabeled.interface.results import Embeddings as Embeddings
from unlabeled.interface.results import Predictions as Predictions
from unlabeled.interface.runs import Run as Run
from unlabeled.interface.runs import finetune as finetune
from unlabeled.interface.runs import pretrain as pretrain
from unlabeled.interface.scores import Scores as Scores
from unlabeled.interface.scores import evaluate as evaluate
from unlabeled.interface.transformer import Embedder as Embedder
from unlabeled.search.index import Index as Index
from unlabeled.serve.hub import push_to_hub as push_to_hub
from unlabeled.transfer.detection.export import load_detector as load_detector
from unlabeled.transfer.segmentation.export import load_segmenter as load_segmenter

__version__: str
