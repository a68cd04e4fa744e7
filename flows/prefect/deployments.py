"""The flows that prefect.yaml deploys, by their names there."""

from __future__ import annotations

from focusdpo.flows.ablation.run import Ablate
from focusdpo.flows.build.run import Build
from focusdpo.flows.evaluate.run import Evaluate
from focusdpo.flows.measure.run import Measure
from focusdpo.flows.prefect.flows import flow_of
from focusdpo.flows.retrain.run import Retrain
from focusdpo.flows.rounds.run import Rounds
from focusdpo.flows.train.run import Train

build_dataset = flow_of(Build)
train = flow_of(Train)
evaluate = flow_of(Evaluate)
measure = flow_of(Measure)
retrain = flow_of(Retrain)
rounds = flow_of(Rounds)
ablate = flow_of(Ablate)
