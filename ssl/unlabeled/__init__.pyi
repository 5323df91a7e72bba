# the names that `__init__.py` imports when they are asked for, for type checkers
from unlabeled.backbone.weights import load_encoder as load_encoder
from unlabeled.errors import UserError as UserError
from unlabeled.interface.model import Model as Model
from unlabeled.interface.model import load as load
from unlabeled.interface.results import Embeddings as Embeddings
from unlabeled.interface.results import Predictions as Predictions

__version__: str
