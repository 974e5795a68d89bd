"""The passage that answers a question, from the logits of its windows."""

import numpy as np

from ingot.data.tasks.examples import Example
from ingot.launcher.tasks.question_answering import best_answer


def test_without_the_choice_of_no_answer_the_best_passage_is_taken():
    context = "anna lives in rome"
    alignment = np.array([[-1, -1], [0, 4], [5, 10], [11, 13], [14, 18]])
    ids = np.zeros(5, np.int64)
    window = Example(ids, ids, np.zeros(2, np.int64), 1, 0, (5,), alignment)
    logits = np.zeros((5, 2))
    logits[0] = 9.0  # no answer
    logits[4] = 5.0
    assert best_answer(context, [(window, logits)], 30, True) == ""
    assert best_answer(context, [(window, logits)], 30, False) == "rome"
    logits[0] = 4.0
    assert best_answer(context, [(window, logits)], 30, True) == "rome"
