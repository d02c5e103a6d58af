"""What a model is for: a task says where labels come from, which head the encoder gets and its scores."""

from tasks.mlm import Mlm
from tasks.ner import Ner
from tasks.readmission import Readmission
from tasks.symptoms import Symptoms
from tasks.trials import Trials

TASKS = {"symptoms": Symptoms, "readmission": Readmission, "ner": Ner, "mlm": Mlm, "trials": Trials}
