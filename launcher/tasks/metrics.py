"""Metrics of predictions, each as the task's literature defines it.

They are fractions between 0 and 1 and correlations between -1 and 1, except where the official script gives percent:
SQuAD's exact_match and f1, and BLEU. A division by zero gives 0. Libraries are imported where they are used.
"""

from __future__ import annotations

import re
import string
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np


def classification_scores(predicted: Sequence[int], true: Sequence[int], labels: Sequence[str]) -> dict[str, float]:
    """accuracy, f1, f1_macro, matthews, precision and recall where each example has one class, as in scikit-learn.

    With two labels f1, precision and recall are those of class 1, as in GLUE (Wang et al. 2018); with more they are
    means over the classes that are true or predicted somewhere, as f1_macro always is. matthews is the correlation
    of Matthews 1975, for more classes that of Gorodkin 2004, and 0 where either side is constant.

    Args:
        predicted: the class of each example, an index in `labels`; so is `true`.
    """
    from sklearn.metrics import matthews_corrcoef, precision_recall_fscore_support

    predicted_N, true_N = _classes(predicted, true, labels)
    present = np.union1d(predicted_N, true_N)
    precision, recall, f1_macro, _ = precision_recall_fscore_support(
        true_N, predicted_N, labels=present, average="macro", zero_division=0
    )
    f1 = f1_macro
    if len(labels) == 2:
        [precision], [recall], [f1], _ = precision_recall_fscore_support(
            true_N, predicted_N, labels=[1], average=None, zero_division=0
        )
    is_constant = np.ptp(predicted_N) == 0 or np.ptp(true_N) == 0
    return {
        "accuracy": float(np.mean(predicted_N == true_N)),
        "f1": float(f1),
        "f1_macro": float(f1_macro),
        "matthews": 0.0 if is_constant else float(matthews_corrcoef(true_N, predicted_N)),
        "precision": float(precision),
        "recall": float(recall),
    }


def classification_report(predicted: Sequence[int], true: Sequence[int], labels: Sequence[str]) -> str:
    """A table with precision, recall, f1 and the number of examples of each class, for people to read."""
    from sklearn.metrics import classification_report as report

    predicted_N, true_N = _classes(predicted, true, labels)
    options = {"labels": range(len(labels)), "target_names": list(labels), "digits": 4, "zero_division": 0}
    return report(true_N, predicted_N, **options)


def confusion(predicted: Sequence[int], true: Sequence[int], labels: Sequence[str]) -> np.ndarray:
    """How many examples of each true class (rows) were predicted as each class (columns); int64."""
    predicted_N, true_N = _classes(predicted, true, labels)
    size = len(labels)
    return np.bincount(true_N * size + predicted_N, minlength=size * size).reshape(size, size)


def multi_label_scores(predicted: np.ndarray, true: np.ndarray, labels: Sequence[str]) -> dict[str, float]:
    """f1_micro (over all decisions), f1_macro (the mean over all labels; 0 for one that is neither true nor predicted
    anywhere) and accuracy, the fraction of examples whose whole set of labels is right.

    Args:
        predicted: bool [examples, labels]; so is `true`.
    """
    predicted_NC, true_NC = _label_sets(predicted, true, labels)  # not scikit-learn, which takes one label for classes
    right_C = (predicted_NC & true_NC).sum(axis=0)
    either_C = predicted_NC.sum(axis=0) + true_NC.sum(axis=0)
    return {
        "f1_micro": float(2 * right_C.sum() / max(either_C.sum(), 1)),
        "f1_macro": float(np.mean(2 * right_C / np.maximum(either_C, 1))),
        "accuracy": float(np.mean((predicted_NC == true_NC).all(axis=1))),
    }


def multi_label_report(predicted: np.ndarray, true: np.ndarray, labels: Sequence[str]) -> str:
    """A table with precision, recall, f1 and the number of examples of each label, for people to read."""
    from sklearn.metrics import classification_report as report

    predicted_NC, true_NC = _label_sets(predicted, true, labels)
    options = {"target_names": list(labels), "digits": 4, "zero_division": 0}
    if len(labels) == 1:  # which scikit-learn takes for two classes
        return report(true_NC[:, 0], predicted_NC[:, 0], labels=[True], **options)
    return report(true_NC, predicted_NC, labels=range(len(labels)), **options)


def regression_scores(predicted: Sequence[float], true: Sequence[float]) -> dict[str, float]:
    """pearson and spearman, the correlations of the values and of their ranks (STS-B's scores in GLUE), which are 0
    where either side is constant, and mean_squared_error."""
    from scipy.stats import pearsonr, spearmanr

    predicted_N, true_N = np.asarray(predicted, np.float64), np.asarray(true, np.float64)
    assert predicted_N.shape == true_N.shape == (len(true_N),)
    assert len(true_N)
    pearson = spearman = 0.0
    if np.ptp(predicted_N) != 0 and np.ptp(true_N) != 0:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that values are nearly constant
            pearson, spearman = pearsonr(predicted_N, true_N)[0], spearmanr(predicted_N, true_N)[0]
    return {
        "pearson": float(pearson),
        "spearman": float(spearman),
        "mean_squared_error": float(np.mean((predicted_N - true_N) ** 2)),
    }


def entity_scores(predicted: Sequence[Sequence[str]], true: Sequence[Sequence[str]]) -> dict[str, float]:
    """precision, recall and f1 over whole entities, right where type, first and last word are, and accuracy, the
    fraction of words with the right label.

    Entities are those that conlleval of CoNLL-2000 (Tjong Kim Sang and Buchholz) sees, as seqeval finds them in its
    default mode: an I- that continues nothing of its type begins an entity too.

    Args:
        predicted: labels such as "B-PER" or "O" of each sentence's words; so is `true`.
    """
    from seqeval.metrics.sequence_labeling import precision_recall_fscore_support

    predicted, true = _labels_of_words(predicted, true)
    precision, recall, f1, _ = precision_recall_fscore_support(true, predicted, average="micro", zero_division=0)
    words = [a == b for ours, theirs in zip(predicted, true, strict=True) for a, b in zip(ours, theirs, strict=True)]
    return {
        "precision": float(precision),
        "recall": float(recall),
        "f1": float(f1),
        "accuracy": float(np.mean(words)),
    }


def word_scores(predicted: Sequence[Sequence[str]], true: Sequence[Sequence[str]]) -> dict[str, float]:
    """precision, recall, f1 and accuracy of labels that are no entities, such as parts of speech: all four are the
    fraction of words with the right label, which micro averages over words are."""
    predicted, true = _labels_of_words(predicted, true)
    right = [a == b for ours, theirs in zip(predicted, true, strict=True) for a, b in zip(ours, theirs, strict=True)]
    return dict.fromkeys(("precision", "recall", "f1", "accuracy"), float(np.mean(right)))


def entity_report(predicted: Sequence[Sequence[str]], true: Sequence[Sequence[str]]) -> str:
    """A table with precision, recall, f1 and the number of entities of each type, for people to read."""
    from seqeval.metrics import classification_report as report
    from seqeval.metrics.sequence_labeling import get_entities

    predicted, true = _labels_of_words(predicted, true)
    if not get_entities(predicted) and not get_entities(true):  # seqeval fails there
        return "no entities, neither true nor predicted\n"
    return report(true, predicted, digits=4, zero_division=0)


def answer_scores(predicted: Mapping[str, str], answers: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """exact_match and f1 in percent, the means over all questions, as the official script of SQuAD 2.0 has them
    (Rajpurkar et al. 2018), which for questions with answers are those of 1.1.

    Of each question the best over its answers counts. Texts are compared in lower case, without punctuation, articles
    and surplus spaces; f1 is that of their bags of words. Without an answer, or only with ones of which that leaves
    nothing, an empty prediction is right.

    Args:
        predicted: the text for each question's id; "" for none.
        answers: the right texts, all of which are equally good; none where the question has no answer.
    """
    assert predicted.keys() == answers.keys()
    assert predicted
    exact_match = f1 = 0.0
    for key, texts in answers.items():
        found = _normal(predicted[key])
        right = [normal for normal in map(_normal, texts) if normal] or [""]
        exact_match += max(found == normal for normal in right)
        f1 += max(_word_f1(found.split(), normal.split()) for normal in right)
    return {"exact_match": 100 * exact_match / len(answers), "f1": 100 * f1 / len(answers)}


def text_scores(predicted: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """rouge1, rouge2, rougeL, bleu and exact_match of texts against one reference each.

    The first three are mean F-measures (Lin 2004) as rouge_score computes them, without stemming; it knows no letters
    but a to z and no digits but 0 to 9, so that other scripts score 0. bleu is that of the whole corpus in percent
    (Papineni et al. 2002), with sacrebleu's defaults (tokens "13a", Post 2018). exact_match is the fraction of texts
    that are their reference, apart from white space around them.
    """
    import sacrebleu
    from rouge_score.rouge_scorer import RougeScorer

    assert len(predicted) == len(references)
    assert len(predicted)
    kinds = ["rouge1", "rouge2", "rougeL"]
    scorer = RougeScorer(kinds, use_stemmer=False)
    pairs = list(zip(predicted, references, strict=True))
    rouge = [scorer.score(target=reference, prediction=text) for text, reference in pairs]
    bleu = sacrebleu.corpus_bleu(
        list(predicted), [list(references)], force=True
    )  # no warning about tokenised full stops
    return {
        **{kind: float(np.mean([score[kind].fmeasure for score in rouge])) for kind in kinds},
        "bleu": float(bleu.score),
        "exact_match": float(np.mean([text.strip() == reference.strip() for text, reference in pairs])),
    }


def _classes(predicted: Sequence[int], true: Sequence[int], labels: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    both = np.asarray(predicted), np.asarray(true)
    assert both[0].shape == both[1].shape == (len(true),)
    assert len(true)
    for classes_N in both:
        assert np.issubdtype(classes_N.dtype, np.integer)
        assert classes_N.min() >= 0
        assert classes_N.max() < len(labels)
    return both[0].astype(np.int64), both[1].astype(np.int64)


def _label_sets(predicted: np.ndarray, true: np.ndarray, labels: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    predicted_NC, true_NC = np.asarray(predicted), np.asarray(true)
    assert predicted_NC.dtype == true_NC.dtype == np.bool_
    assert predicted_NC.shape == true_NC.shape == (len(true_NC), len(labels))
    assert true_NC.size
    return predicted_NC, true_NC


def _labels_of_words(predicted: Sequence[Sequence[str]], true: Sequence[Sequence[str]]) -> tuple[list, list]:
    predicted, true = [list(labels) for labels in predicted], [list(labels) for labels in true]
    assert [len(labels) for labels in predicted] == [len(labels) for labels in true]
    assert any(true)
    return predicted, true


_PUNCTUATION = str.maketrans("", "", string.punctuation)


def _normal(text: str) -> str:
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text.lower().translate(_PUNCTUATION)).split())


def _word_f1(found: list[str], right: list[str]) -> float:
    if not found or not right:
        return float(found == right)
    num_same = (Counter(found) & Counter(right)).total()
    return 2 * num_same / (len(found) + len(right))  # 2PR / (P + R) with P = same / found, R = same / right
