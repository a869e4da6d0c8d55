"""The formats of all families, by name: what parsers read, grammars demand and templates are searched for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from sapwood.text.parsers.formats import Keywords, Named, Object, Reasoning, Section, Tagged, ToolFormat

_HERMES = Section(open="<tool_call>", begin="\n", shape=Object(), end="\n", close="</tool_call>", single=True)
_FUNCTION = Tagged(
    before="<function=",
    between=">\n",
    key="<parameter=",
    middle=">",
    end="</parameter>\n",
    after="</function>",
    newlines=True,
)
_CODER = replace(_HERMES, shape=_FUNCTION)
_CODER_BARE = Section(  # the first mark is forgotten at times
    open="<function=", shape=replace(_FUNCTION, before=""), close="</tool_call>", single=True
)
_SEED = Section(
    open="<seed:tool_call>",
    begin="\n",
    shape=replace(_FUNCTION, after="</function>\n", newlines=False),
    close="</seed:tool_call>",
    single=True,
)
_DSML = Tagged(
    before='<｜DSML｜invoke name="',
    between='">\n',
    key='<｜DSML｜parameter name="',
    middle='" string="false">',
    text_middle='" string="true">',
    end="</｜DSML｜parameter>\n",
    after="</｜DSML｜invoke>\n",
)
_DSML_V3 = Section(open="<｜DSML｜function_calls>", begin="\n", shape=_DSML, close="</｜DSML｜function_calls>")
_DSML_V4 = replace(_DSML_V3, open="<｜DSML｜tool_calls>", close="</｜DSML｜tool_calls>")
_LLAMA = Section(open="", shape=Object(arguments="parameters"), comma="; ", others=("<|python_tag|>",))
_LLAMA4 = Section(open="<|python_start|>", begin="[", shape=Keywords(), comma=", ", end="]", close="<|python_end|>")
_LLAMA4_JSON = Section(
    open="<|python_start|>", shape=Object(arguments="parameters"), comma="; ", close="<|python_end|>"
)
_PYTHONIC = Section(open="", begin="[", shape=Keywords(), comma=", ", end="]")
_MISTRAL_LIST = Section(open="[TOOL_CALLS]", begin="[", shape=Object(), comma=", ", end="]")
_MISTRAL_ARGS = Section(open="[TOOL_CALLS]", shape=Named(between="[ARGS]"), single=True, between="")
_GEMMA = Keywords(before="call:", begin="{", equals=":", comma=",", end="}")
_LFM = Section(open="<|tool_call_start|>", begin="[", shape=Keywords(), comma=", ", end="]", close="<|tool_call_end|>")
_PHI = Section(open="<|tool_call|>", begin="[", shape=Object(), comma=", ", end="]", close="<|/tool_call|>")
_FUNCTOOLS = Section(open="functools", begin="[", shape=Object(), comma=", ", end="]")
_HARMONY_DROP = (
    "<|start|>assistant",
    "<|channel|>final<|message|>",
    "<|channel|>final json<|message|>",  # said of an answer that is to be JSON
    "<|channel|>final <|constrain|>json<|message|>",
    "<|channel|>commentary<|message|>",
    "<|end|>",
    "<|call|>",
    "<|return|>",
)

TOOLS: Mapping[str, ToolFormat] = MappingProxyType(
    {
        "harmony": ToolFormat(
            sections=(
                Section(
                    open="<|channel|>commentary to=functions.",
                    shape=Named(between=" <|constrain|>json<|message|>"),
                    close="<|call|>",
                    single=True,
                    between="<|start|>assistant",
                    others=("<|channel|>analysis to=functions.", "<|start|>assistant to=functions.", " to=functions."),
                ),
            ),
            drop=_HARMONY_DROP,
            signs=("<|channel|>", "<|start|>"),
            aliases=("openai", "gpt-oss", "gpt_oss"),
        ),
        "kimi-k2": ToolFormat(
            sections=(
                Section(
                    open="<|tool_calls_section_begin|>",
                    shape=Named(
                        before="<|tool_call_begin|>",
                        prefix="functions.",
                        between="<|tool_call_argument_begin|>",
                        after="<|tool_call_end|>",
                        numbered=True,
                    ),
                    close="<|tool_calls_section_end|>",
                ),
            ),
            signs=("<|tool_calls_section_begin|>",),
            ids="numbered",
            aliases=("kimi_k2", "kimi"),
        ),
        "deepseek-v4": ToolFormat(
            sections=(_DSML_V4, _DSML_V3),
            signs=("｜DSML｜", "tool_calls>"),
            aliases=("deepseek_v4", "deepseekv4"),
        ),
        "deepseek-v3.2": ToolFormat(
            sections=(_DSML_V3, _DSML_V4),
            signs=("｜DSML｜",),
            aliases=("deepseek_v32", "deepseekv32"),
        ),
        "deepseek-v3": ToolFormat(
            sections=(
                Section(
                    open="<｜tool▁calls▁begin｜>",
                    shape=Named(
                        before="<｜tool▁call▁begin｜>function<｜tool▁sep｜>",
                        between="\n```json\n",
                        after="\n```<｜tool▁call▁end｜>",
                    ),
                    comma="\n",
                    close="<｜tool▁calls▁end｜>",
                ),
            ),
            signs=("<｜tool▁calls▁begin｜>", "```json"),
            aliases=("deepseek_v3", "deepseekv3", "deepseek-r1"),
        ),
        "deepseek-v3.1": ToolFormat(
            sections=(
                Section(
                    open="<｜tool▁calls▁begin｜>",
                    shape=Named(before="<｜tool▁call▁begin｜>", between="<｜tool▁sep｜>", after="<｜tool▁call▁end｜>"),
                    close="<｜tool▁calls▁end｜>",
                ),
            ),
            signs=("<｜tool▁calls▁begin｜>",),
            aliases=("deepseek_v31", "deepseekv31"),
        ),
        "mistral": ToolFormat(sections=(_MISTRAL_ARGS, _MISTRAL_LIST), signs=("[TOOL_CALLS]", "[ARGS]"), ids="short"),
        "mistral-list": ToolFormat(sections=(_MISTRAL_LIST, _MISTRAL_ARGS), signs=("[TOOL_CALLS]",), ids="short"),
        "glm4.7": ToolFormat(
            sections=(
                Section(
                    open="<tool_call>",
                    shape=Tagged(
                        key="<arg_key>", middle="</arg_key><arg_value>", end="</arg_value>", after="</tool_call>"
                    ),
                    single=True,
                    between="",
                ),
            ),
            signs=("</arg_key><arg_value>",),
            aliases=("glm47",),
        ),
        "glm": ToolFormat(
            sections=(
                Section(
                    open="<tool_call>",
                    shape=Tagged(
                        between="\n",
                        key="<arg_key>",
                        middle="</arg_key>\n<arg_value>",
                        end="</arg_value>\n",
                        after="</tool_call>",
                    ),
                    single=True,
                ),
            ),
            signs=("<arg_key>",),
            aliases=("glm45",),
        ),
        "minimax-m2": ToolFormat(
            sections=(
                Section(
                    open="<minimax:tool_call>",
                    begin="\n",
                    shape=Tagged(
                        before='<invoke name="',
                        between='">\n',
                        key='<parameter name="',
                        middle='">',
                        end="</parameter>\n",
                        after="</invoke>\n",
                    ),
                    close="</minimax:tool_call>",
                ),
            ),
            signs=("<minimax:tool_call>",),
            aliases=("minimax_m2", "minimax"),
        ),
        "seed": ToolFormat(sections=(_SEED,), signs=("<seed:tool_call>",), aliases=("seed_oss",)),
        "qwen3-coder": ToolFormat(
            sections=(_CODER, _HERMES, _CODER_BARE),
            signs=("<tool_call>", "<function="),
            aliases=("qwen3_coder", "qwen3_xml"),
        ),
        "gemma4": ToolFormat(
            sections=(
                Section(
                    open="<|tool_call>",
                    shape=replace(_GEMMA, quote='<|"|>'),
                    close="<tool_call|>",
                    single=True,
                    between="",
                ),
            ),
            signs=("<|tool_call>",),
        ),
        "functiongemma": ToolFormat(
            sections=(
                Section(
                    open="<start_function_call>",
                    shape=replace(_GEMMA, quote="<escape>"),
                    close="<end_function_call>",
                    single=True,
                    between="",
                ),
            ),
            signs=("<start_function_call>",),
        ),
        "lfm2.5": ToolFormat(sections=(_LFM,), signs=("<|tool_call_start|>",)),
        "lfm2": ToolFormat(sections=(_LFM,), signs=("<|tool_list_start|>",)),
        "phi4": ToolFormat(
            sections=(_PHI, Section(open="<|tool_call|>", shape=Object(), close="<|/tool_call|>"), _FUNCTOOLS),
            signs=("<|tool|>",),
            aliases=("phi4-mini",),
        ),
        "phi4-functools": ToolFormat(sections=(_FUNCTOOLS, _PHI), signs=("functools[",), aliases=("phi4_mini_json",)),
        "granite": ToolFormat(
            sections=(
                Section(open="<|tool_call|>", begin="[", shape=Object(), comma=", ", end="]", others=("<tool_call>",)),
            ),
            signs=("<|tool_call|>",),
        ),
        "llama4-json": ToolFormat(
            sections=(_LLAMA, _LLAMA4_JSON, _LLAMA4, _PYTHONIC),
            signs=('"parameters"', "<|eot|>"),
            aliases=("llama4_json",),
        ),
        "llama4": ToolFormat(
            sections=(_LLAMA4, _PYTHONIC, _LLAMA4_JSON, _LLAMA),
            signs=("<|python_start|>",),
            aliases=("llama4_pythonic",),
        ),
        "pythonic": ToolFormat(
            sections=(_PYTHONIC,), signs=("[func_name1(params_name1=",), aliases=("llama3_pythonic",)
        ),
        "llama3": ToolFormat(
            sections=(_LLAMA,), signs=('"parameters"', "<|eot_id|>"), aliases=("llama3_json", "llama3.1")
        ),
        "gemma3": ToolFormat(
            sections=(
                Section(open="```tool_code\n", shape=Keywords(), comma="\n", close="\n```"),
                _PYTHONIC,
            ),
            signs=("<start_of_turn>", "tool_code"),
            aliases=("gemma",),
        ),
        "hermes": ToolFormat(sections=(_HERMES,), signs=("<tool_call>",), aliases=("qwen", "qwen25", "qwen3", "qwen2")),
        "generic": ToolFormat(sections=(_HERMES, _CODER, Section(open="", shape=Object()))),
    }
)
"""By name; where templates show signs of several, the first is meant."""

REASONING: Mapping[str, Reasoning] = MappingProxyType(
    {
        "harmony": Reasoning(
            begin="<|channel|>analysis<|message|>",
            end="<|end|>",
            leave="<|end|><|start|>assistant<|channel|>final<|message|>",
            resume="<|start|>assistant",
            answer="<|channel|>final<|message|>",
            drop=_HARMONY_DROP,
            signs=("<|channel|>", "<|start|>"),
            aliases=("openai", "gpt-oss", "gpt_oss", "openai_gptoss"),
        ),
        "gemma4": Reasoning(begin="<|channel>thought\n", end="<channel|>", leave="\n<channel|>", signs=("<|channel>",)),
        "mistral": Reasoning(begin="[THINK]", end="[/THINK]", leave="[/THINK]", signs=("[THINK]",)),
        "kimi-vl": Reasoning(begin="◁think▷", end="◁/think▷", leave="◁/think▷", signs=("◁think▷",), aliases=("kimi",)),
        "seed": Reasoning(
            begin="<seed:think>",
            end="</seed:think>",
            leave="</seed:think>",
            signs=("<seed:think>",),
            aliases=("seed_oss",),
        ),
        "think": Reasoning(
            begin="<think>",
            end="</think>",
            leave="\n</think>",
            lines=True,
            signs=("</think>",),
            aliases=("deepseek_r1", "deepseek-r1", "qwen3", "qwq", "glm45", "kimi_k2", "phi4", "minimax"),
        ),
    }
)
