"""What a model is for. A task says where labels come from, which head the encoder wears and how it is scored."""

from tasks.mlm import Mlm
from tasks.ner import Ner
from tasks.readmission import Readmission
from tasks.symptoms import Symptoms
from tasks.trials import Trials

TASKS = {"symptoms": Symptoms, "readmission": Readmission, "ner": Ner, "mlm": Mlm, "trials": Trials}
