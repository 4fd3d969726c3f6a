"""What an answer's pieces become on their way to the connection."""

from unittest.mock import Mock, call

import pytest

from app.connections.ending import AnswersTransport


@pytest.fixture
def connection():
    transport = Mock()
    transport.is_closing.return_value = False
    transport.attach_mock(Mock(), "end")
    return transport


@pytest.fixture
def answers(connection):
    return AnswersTransport(connection, connection.end)


def sent(connection):
    return [one for one in connection.mock_calls if one != call.is_closing()]


def test_a_head_goes_out_with_the_beginning_of_its_body(answers, connection):
    with answers.first_with_second():
        answers.write(b"head")
        assert not sent(connection)
        answers.write(b"body")
        assert sent(connection) == [call.writelines((b"head", b"body"))]
        answers.write(b"more")
    answers.write(b"another")
    assert sent(connection)[1:] == [call.write(b"more"), call.write(b"another")]


def test_a_head_without_a_body_goes_out_all_the_same(answers, connection):
    with answers.first_with_second():
        answers.write(b"head")
    assert sent(connection) == [call.writelines((b"head", b""))]


def test_a_head_without_a_body_goes_out_before_the_connection_ends(answers, connection):
    with answers.first_with_second():
        answers.write(b"head")
        answers.close()
    assert sent(connection) == [call.writelines((b"head", b"")), call.end()]


def test_a_connection_that_has_ended_is_sent_nothing(answers, connection):
    connection.is_closing.return_value = True
    with answers.first_with_second():
        answers.write(b"head")
        answers.write(b"body")
    answers.write(b"more")
    assert not sent(connection)


def test_an_error_between_the_two_loses_neither_the_head_nor_the_error(answers, connection):
    with pytest.raises(ZeroDivisionError), answers.first_with_second():
        answers.write(b"head")
        raise ZeroDivisionError
    assert sent(connection) == [call.writelines((b"head", b""))]
