import pytest
from flwr.app import ConfigRecord, Context, Message, MessageType, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from fl_sim.local_grid import LocalGrid


def counting_client(message: Message, context: Context) -> Message:
    """Answers with its partition index and how often it has been asked."""
    asked = int(str(context.state.config_records.get("asked", ConfigRecord({"times": 0}))["times"])) + 1
    context.state["asked"] = ConfigRecord({"times": asked})
    client = int(context.node_config["partition-id"])
    return Message(RecordDict({"answer": ConfigRecord({"client": client, "times": asked})}), reply_to=message)


def ask(grid: LocalGrid, *nodes: int) -> list[tuple[object, object]]:
    replies = grid.send_and_receive([Message(RecordDict(), node, MessageType.QUERY) for node in nodes])
    answers = [reply.content.config_records["answer"] for reply in replies]
    return [(answer["client"], answer["times"]) for answer in answers]


def test_clients_are_told_apart_and_keep_their_state() -> None:
    grid = LocalGrid(counting_client, [7, 5])
    assert grid.get_node_ids() == [7, 5]
    assert ask(grid, 7, 5) == [(0, 1), (1, 1)]
    assert ask(grid, 5) == [(1, 2)]
    assert ask(grid, 7) == [(0, 2)]


def test_replies_name_the_message_that_they_answer_and_come_once() -> None:
    grid = LocalGrid(counting_client, [7, 5])
    ids = grid.push_messages([Message(RecordDict(), node, MessageType.QUERY) for node in (5, 7)])
    ids += grid.push_messages([Message(RecordDict(), 5, MessageType.QUERY)])
    assert len(set(ids)) == 3
    assert [reply.metadata.reply_to_message_id for reply in grid.pull_messages(ids)] == ids
    assert grid.pull_messages(ids) == []


def test_it_makes_a_run_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, None)
    with pytest.raises(RuntimeError, match="not set"):
        Message(RecordDict(), 7, MessageType.QUERY)
    assert ask(LocalGrid(counting_client, [7]), 7) == [(0, 1)]


def test_a_run_that_has_begun_keeps_its_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 5)
    assert ask(LocalGrid(counting_client, [7]), 7) == [(0, 1)]
    assert (TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id) == (5, 5, 5)
