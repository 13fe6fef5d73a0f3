"""Grammars as Lark's, outlines', vLLM's and llama.cpp's users write them are read as what they are, and those that name
an end token are refused."""

from __future__ import annotations

import pytest
from tests.support.held_answers import demo, encode, eos_ids, made, request, verdict

from mlxq.contract import Sampling
from mlxq.errors import RequestError
from mlxq_worker.text.grammar_syntax import as_lark

JSON_IN_LARK = """
?start: value

?value: object
      | array
      | string
      | SIGNED_NUMBER      -> number
      | "true"             -> true
      | "false"            -> false
      | "null"             -> null

array  : "[" [value ("," value)*] "]"
object : "{" [pair ("," pair)*] "}"
pair   : string ":" value

string : ESCAPED_STRING

%import common.ESCAPED_STRING
%import common.SIGNED_NUMBER
%import common.WS

%ignore WS
"""
ARITHMETIC = """
    ?start: expression

    ?expression: term (("+" | "-") term)*

    ?term: factor (("*" | "/") factor)*

    ?factor: NUMBER
           | "-" factor
           | "(" expression ")"

    %import common.NUMBER
"""
SQL_IN_LARK = """
?start: select_statement
?select_statement: "SELECT " column_list " FROM " table_name
?column_list: column_name ("," column_name)*
?table_name: identifier
?column_name: identifier
?identifier: /[a-zA-Z_][a-zA-Z0-9_]*/
"""
SQL_IN_EBNF = """
root ::= select_statement
select_statement ::= "SELECT " column " from " table
column ::= "col_1 " | "col_2 "
table ::= "table_1" | "table_2"
"""


@pytest.mark.parametrize(
    ("grammar", "text"),
    [
        (JSON_IN_LARK, '{"a": [1, true, null]}'),
        (ARITHMETIC, "(1+2)*-3"),
        (SQL_IN_LARK, "SELECT name,age FROM people"),
        ('!start: "a" b\n!b: "c"', "ac"),
        ('start.2: "a" B\nB.10: /b+/', "abb"),
        ('start  :  "::=" "a"', "::=a"),
        ('// root ::= "b"\nstart: "a"', "a"),
        ('%llguidance {}\nstart: "a"', "a"),
    ],
    ids=["json", "arithmetic", "sql", "!start", "start.2", "::= in a string", "::= in a comment", "directive"],
)
def test_lark_is_taken_for_lark_however_its_start_is_written(grammar: str, text: str) -> None:
    assert verdict(request("grammar", grammar), text) == "complete"


@pytest.mark.parametrize(
    ("grammar", "text"),
    [
        (SQL_IN_EBNF, "SELECT col_1  from table_2"),
        ('root ::= start "x"\nstart ::= "a" | "b"', "bx"),
        ('start ::= "a" rest\nrest ::= [0-9]+', "a12"),
        ('root ::= "start" start_1 start\nstart ::= [start:]\nstart_1 ::= "1"', "start1:"),
        ('# start: no\nroot ::= "a"', "a"),
    ],
    ids=["vLLM's sql", "a rule called start", "start is the first", "start in a string", "start in a comment"],
)
def test_ebnf_is_taken_for_ebnf_also_with_a_rule_called_start(grammar: str, text: str) -> None:
    assert verdict(request("grammar", grammar), text) == "complete"


def test_what_is_neither_is_refused_in_the_converters_words() -> None:
    with pytest.raises(Exception, match="Expected ::="):
        as_lark("nonsense")


def end_token() -> tuple[int, str]:
    member = next(iter(demo().eos.members(eos_ids())))
    return member.id, member.token


def test_a_grammar_that_names_an_end_token_is_refused_when_it_is_compiled() -> None:
    token_id, token = end_token()

    for grammar in (
        f'start: "a" {token}',
        f'start: "a" <[{token_id}]>',
        f'start: b\nb: "a" ({token} | <[{token_id}]>)',
    ):
        with pytest.raises(RequestError) as refused:
            made(request("grammar", grammar))
        assert (refused.value.param, refused.value.code) == ("response_format", "invalid_grammar")
        assert "ends the answer" in refused.value.message


def test_a_grammar_that_names_a_stop_token_of_the_request_is_refused_too() -> None:
    (stop_id,) = encode("!")

    with pytest.raises(RequestError, match="ends the answer"):
        made(request("grammar", f'start: "a" <[{stop_id}]>', Sampling(stop_token_ids=(stop_id,))))


def test_an_end_tokens_text_in_strings_expressions_and_comments_names_no_token() -> None:
    _, token = end_token()
    grammar = f'// {token}\nstart: "{token}" | /b{token}/ | "c"'

    assert verdict(request("grammar", grammar), "c") == "complete"


def test_a_token_that_ends_nothing_may_be_named() -> None:
    (other_id,) = encode("!")

    assert verdict(request("grammar", f'start: "a" <[{other_id}]>'), "a!") == "complete"
