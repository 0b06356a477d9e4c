"""``ramen check``."""

import apsw
from queue_kit import INTEGER, TEXT, TRUTH, Shape, active_reader, answer, has_shape, open_queue, push, ramen
from test_cli_status import BOOKS

SCHEMA = {"queue": TEXT, "well": TRUTH, "problems": [TEXT], "books": BOOKS, "repaired": Shape([None])}


def change(queue, statement):
    connection = apsw.Connection(str(queue.path), flags=apsw.SQLITE_OPEN_READWRITE)
    connection.execute(statement)
    connection.close()


def test_a_sound_queue_is_well(tmp_path, capsys):
    with open_queue(tmp_path) as queue:
        push(queue, 3)
        assert ramen("check", "--queue-dir", tmp_path) == 0
        assert (
            "all is well; the books balance over 3 pushed messages, 3 of them waiting."
            in capsys.readouterr().out
        )
        found = answer(capsys, "check", "--queue-dir", tmp_path)
    assert has_shape(found, SCHEMA)
    assert (found["well"], found["problems"], found["books"]["pushed"]) == (True, [], 3)


def test_damaged_rows_and_wrong_books_are_not_well_and_each_is_said(tmp_path, capsys):
    with open_queue(tmp_path) as queue:
        push(queue, 3)
        change(queue, "UPDATE message SET reqid = 'other' WHERE position = 2")
        change(queue, "UPDATE book SET dead_bytes = 7")
        assert ramen("check", "--queue-dir", tmp_path) == 1
        said = capsys.readouterr().out.splitlines()
        assert said == [
            "the books say 7 bytes of dead letters, the file holds 0",
            "1 waiting messages are damaged (wrong checksums), the first at position 2; the reader will make dead letters of them",
        ]
        found = answer(capsys, "check", "--queue-dir", tmp_path, code=1)
    assert has_shape(found, SCHEMA)
    assert (found["well"], found["problems"]) == (False, said)


def test_there_must_be_a_queue(tmp_path, capsys):
    (tmp_path / "imx_1.db").write_bytes(b"no database" * 1000)
    assert ramen("check", "--queue-dir", tmp_path) == 3
    assert "is damaged or not a queue" in capsys.readouterr().err


def test_repair_sets_the_books_right_and_says_what_it_entered(tmp_path, capsys):
    with open_queue(tmp_path) as queue:
        push(queue, 3)
        change(queue, "UPDATE book SET accepted = accepted + 5")
    assert ramen("check", "--queue-dir", tmp_path) == 1
    capsys.readouterr()
    assert ramen("check", "--repair", "--queue-dir", tmp_path) == 0
    said = capsys.readouterr().out
    assert "The books were set right: 5 messages entered as found, 0 as damaged." in said
    assert "all is well; the books balance" in said
    assert ramen("check", "--repair", "--queue-dir", tmp_path) == 0
    assert "The books were right." in capsys.readouterr().out


def test_repair_has_a_documented_shape_in_json_and_needs_the_readers_place(tmp_path, capsys):
    shape = {"found": INTEGER, "damaged": INTEGER, "counts_changed": TRUTH, "rules_forgotten": INTEGER}
    with open_queue(tmp_path) as queue:
        push(queue, 1)
        found = answer(capsys, "check", "--repair", "--queue-dir", tmp_path)
        assert has_shape(found, {**SCHEMA, "repaired": shape})
        with active_reader(queue):
            assert ramen("check", "--repair", "--queue-dir", tmp_path) == 3
    assert "a reader is at work on it" in capsys.readouterr().err
