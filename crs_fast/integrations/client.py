"""iEvaLM's three calls (`get_rec`, `get_conv`, `get_choice`), answered by a crs_fast server or by
a `predictions.jsonl`.

This file needs Python 3.7 and its standard library, and imports nothing of crs_fast: copy it into
the other project, whose old torch and transformers cannot share a process with ours.
"""

import json
import urllib.error
import urllib.request


class Client:
    """A recommender in the form that iEvaLM's `RECOMMENDER` wraps.

    Args:
        source: the server's address, "http://host:port", or the path of a `predictions.jsonl`. A
            file answers only the data set's own contexts; a simulated user needs a server.
        entity2id: iEvaLM's `entity2id.json`, as a dictionary or a path: the numbers by which it
            names items. Our item ids must be its names or its numbers as strings, as they are
            where the data set was read from its folder.
        num_items: length of a ranking.
        timeout: seconds to wait for the server.
    """

    def __init__(self, source, entity2id, num_items=50, timeout=120.0):
        if not isinstance(entity2id, dict):
            with open(entity2id, encoding="utf-8") as file:
                entity2id = json.load(file)
        self.entity2id = entity2id
        self.num_items = num_items
        self.timeout = timeout
        self._numbers = {str(number): number for number in entity2id.values()}
        self._url = None
        self._answers = {}
        if str(source).startswith(("http://", "https://")):
            self._url = str(source).rstrip("/") + "/v1/respond"
        else:
            self._answers = _read_predictions(source)

    def get_rec(self, conv_dict):
        """Returns ([numbers of the recommended items, best first], one list), and the numbers of
        the items in `conv_dict["rec"]`."""
        ids = [item["id"] for item in self._respond(conv_dict, "rec")["items"]]
        numbers = [self._number(item_id) for item_id in ids]
        known = [number for number in numbers if number is not None]
        if ids and not known:
            raise ValueError(
                "get_rec: entity2id must name the recommended items "
                f"(got none of {len(ids)}, such as {ids[0]!r})"
            )
        labels = [self._number(name) for name in conv_dict["rec"]]
        return [known[: self.num_items]], [label for label in labels if label is not None]

    def get_conv(self, conv_dict):
        """Returns the whole answer, which `get_choice` takes, and the text of the reply."""
        answer = self._respond(conv_dict, None)
        return answer, answer["text"]

    def get_choice(self, gen_inputs, options, state, conv_dict=None):
        """The option to take: the last one, which recommends, if the answer of `get_conv` does or
        if no question is left; else the first question that was not asked yet (its `state` is not
        negative)."""
        questions = [option for option, used in zip(options[:-1], state) if used >= 0]  # noqa: B905
        if gen_inputs["mode"] == "rec" or not questions:
            return options[-1]
        return questions[0]

    def _number(self, item_id):
        """iEvaLM's number of an item; None where it does not know the item."""
        if item_id in self.entity2id:
            return self.entity2id[item_id]
        return self._numbers.get(str(item_id))

    def _respond(self, conv_dict, mode):
        if self._url is None:
            return self._look_up(conv_dict, mode)
        messages = [{"role": role, "content": text} for role, text in _turns(conv_dict["context"])]
        body = {"messages": messages, "mode": mode, "num_items": self.num_items, "exclude": []}
        request = urllib.request.Request(
            self._url,
            json.dumps(body).encode("utf-8"),
            {"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as response:
                return json.loads(response.read().decode("utf-8"))
        except urllib.error.HTTPError as error:
            said = error.read().decode("utf-8", "replace")
            raise RuntimeError(
                f"Client: {self._url} must answer with status 200 (got {error.code}: {said[:500]})"
            ) from None
        except urllib.error.URLError as error:
            raise ConnectionError(
                f"Client: {self._url} must be a running server (got {error.reason})"
            ) from None

    def _look_up(self, conv_dict, mode):
        """The prediction for a row of the data set, in the form of a server's answer."""
        key = (str(conv_dict["dialog_id"]), _turn_index(conv_dict["context"]))
        record = self._answers.get(key, {})
        gold = {str(item) for item in record.get("gold") or ()}
        if not record or not gold.issuperset(map(str, conv_dict["rec"])):
            other = "one about other items" if record else "none"
            raise ValueError(
                "Client: predictions.jsonl must hold an answer to this context, a row of the data "
                f"set (got {other} for dialogue {key[0]!r}, turn {key[1]}); a simulated user needs "
                "a server"
            )
        ranking = record.get("ranking") or []
        if mode is None:
            probability = record.get("rec_probability")
            mode = record.get("mode") or ("rec" if (probability or 0) > 0.5 else "chat")
        return {
            "mode": mode,
            "items": [{"id": item_id} for item_id in ranking] if mode == "rec" else [],
            "text": record.get("reply") or "",
        }


def _read_predictions(path):
    with open(path, encoding="utf-8") as file:
        records = [json.loads(line) for line in file if line.strip()]
    return {(str(record["dialogue"]), record["turn"]): record for record in records}


def _turns(context):
    """(role, text) of the texts that are not empty. The user stands at even places; where the
    recommender begins, place 0 is empty."""
    roles = ("user", "assistant")
    return [(roles[place % 2], text) for place, text in enumerate(context) if text]


def _turn_index(context):
    """Where the reply stands among the dialogue's turns, in which neighbouring texts of one role
    are one turn."""
    roles = [role for role, _ in _turns(context)]
    runs = sum(role != before for role, before in zip(roles, [None] + roles))  # noqa: B905, RUF005
    return runs - 1 if roles and roles[-1] == "assistant" else runs
