"""One exception hierarchy: what went wrong, in one sentence, and the exit code it deserves."""


class HusaiError(Exception):
    """Any failure that a user can understand and act on; the message is one sentence with a remedy."""

    exit_code = 1


class ParameterError(HusaiError):
    """A parameter file, an override or a command line says something that cannot be run."""

    exit_code = 2


class DataError(HusaiError):
    """A text, a data set or an activation is missing, empty or not usable."""


class ModelError(HusaiError):
    """A language model or an SAE could not be found or loaded."""


class EvidenceError(HusaiError):
    """A run, a record or a cached file is missing, unfinished or busy."""


class StepError(HusaiError):
    """A notebook of a cycle failed."""


class IntegrityError(EvidenceError):
    """A record, weight or cached file is not what its hash says it is."""

    exit_code = 4


class GateError(HusaiError):
    """A release gate failed and the user asked for that to be an error."""

    exit_code = 3
