"""Commands of the planner: what to run, and what it will cost."""

from flopcast.cli.app import Flag, app
from flopcast.cli.output import print_json, show
from flopcast.cli.question import Question


@app.command
def compare(model: str, /, *, question: Question, json: Flag = False) -> None:
    """Sharding strategies side by side for one model on one cluster: time, efficiency, memory, traffic.

    What is left out is chosen for each strategy so that it fits and runs fastest, and the table says what was chosen.

    Parameters
    ----------
    model
        A catalogue name (plamo-13b) or the path of a Hugging Face config.json.
    question
        What is asked.
    json
        Print one JSON document and nothing else.

    """
    from flopcast.simulator.catalogue import load_cluster, load_model
    from flopcast.simulator.compare import compare as run

    request = question.request()
    comparison = run(load_model(model), load_cluster(question.cluster), request)
    if json:
        from flopcast.reports.comparison import as_json

        print_json(as_json(comparison, question.tokens))
    else:
        from flopcast.reports.comparison import render

        show(render(comparison, question.tokens))
