"""What outputs have to match: grammars compiled, followed token by token, and turned into masks. No torch here."""

from sapwood.grammar.checker import Checker
from sapwood.grammar.compiler import Compiler
from sapwood.grammar.constraint import Constraint
from sapwood.grammar.constraints import Constraints
from sapwood.grammar.stake import GrammarStake
from sapwood.grammar.vocabulary import Vocabulary, VocabularySpec

__all__ = ["Checker", "Compiler", "Constraint", "Constraints", "GrammarStake", "Vocabulary", "VocabularySpec"]
