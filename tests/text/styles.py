"""Chat templates in the styles of the families, small enough to read."""

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA3 = """\
{{- bos_token }}
{%- for message in messages %}
    {%- if 'tool_calls' in message %}
        {%- if message.tool_calls | length != 1 %}{{- raise_exception("One call at a time.") }}{%- endif %}
        {{- "<|start_header_id|>assistant<|end_header_id|>\\n\\n" }}
        {{- message.tool_calls[0].function | tojson }}{{- "<|eot_id|>" }}
    {%- else %}
        {{- "<|start_header_id|>" + message["role"] + "<|end_header_id|>\\n\\n" + message["content"] | trim + "<|eot_id|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- "<|start_header_id|>assistant<|end_header_id|>\\n\\n" }}{%- endif %}"""
MISTRAL = """\
{%- if messages[0].role == "system" %}
    {%- set told = messages[0].content if messages[0].content is string else messages[0].content[0].text %}
    {%- set rest = messages[1:] %}
{%- else %}
    {%- set told = "Be brief." %}{%- set rest = messages %}
{%- endif %}
{{- bos_token + "[SYSTEM_PROMPT]" + told + "[/SYSTEM_PROMPT]" }}
{%- for message in rest %}
    {%- if (message.role == "user") != (loop.index0 % 2 == 0) %}
        {{- raise_exception("Roles must alternate user/assistant/user/assistant.") }}
    {%- endif %}
    {%- if message.role == "user" and message.content is string %}
        {{- "[INST]" + message.content + "[/INST]" }}
    {%- elif message.role == "user" %}
        {{- "[INST]" }}{%- for block in message.content %}{{- block.text }}{%- endfor %}{{- "[/INST]" }}
    {%- else %}
        {{- message.content if message.content is string else message.content[0].text }}{{- eos_token }}
    {%- endif %}
{%- endfor %}"""
GEMMA = """\
{{ bos_token }}
{%- if messages[0].role in ["system", "developer"] -%}
    {{ "<start_of_turn>system\\n" + messages[0].content | trim + "<end_of_turn>\\n" }}
    {%- set messages = messages[1:] -%}
{%- endif -%}
{%- for message in messages -%}
    {{ "<start_of_turn>" + ("model" if message.role == "assistant" else message.role) + "\\n" }}
    {%- if message.content is string -%}
        {{ message.content | trim }}
    {%- else -%}
        {%- for item in message.content -%}{{ item.text | trim }}{%- endfor -%}
    {%- endif -%}
    {{ "<end_of_turn>\\n" }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ "<start_of_turn>model\\n" }}{%- endif -%}"""
QWEN = """\
{%- macro shown(content) %}
    {%- if content is string %}
        {{- content }}
    {%- elif content is iterable and content is not mapping %}
        {%- for item in content %}{%- if item.type == "text" %}{{- item.text }}{%- endif %}{%- endfor %}
    {%- endif %}
{%- endmacro %}
{%- for message in messages %}
    {%- set content = shown(message.content) | trim %}
    {%- if message.role == "system" %}
        {%- if not loop.first %}{{- raise_exception("System message must be at the beginning.") }}{%- endif %}
        {{- "<|im_start|>system\\n" + content + "<|im_end|>\\n" }}
    {%- elif message.role == "assistant" %}
        {%- set thoughts = message.reasoning_content | trim if message.reasoning_content is string else "" %}
        {{- "<|im_start|>assistant\\n<think>\\n" + thoughts + "\\n</think>\\n\\n" + content + "<|im_end|>\\n" }}
    {%- elif message.role in ["user", "tool"] %}
        {{- "<|im_start|>" + message.role + "\\n" + content + "<|im_end|>\\n" }}
    {%- else %}
        {{- raise_exception("Unexpected message role.") }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- "<|im_start|>assistant\\n<think>\\n" }}{%- endif %}"""
KIMI = """\
{%- macro say(message) -%}
    {%- set c = message.get('content') -%}
    {%- if c is string -%}{{ c }}{%- elif c is not none -%}{% for p in c -%}{{ p['text'] }}{%- endfor -%}{%- endif -%}
{%- endmacro -%}
{%- for message in messages -%}
    {{ "<|im_" + message.role + "|>" + message.role + "<|im_middle|>" }}{{ say(message) }}<|im_end|>
{%- endfor -%}
{%- if add_generation_prompt -%}<|im_assistant|>assistant<|im_middle|>{%- endif -%}"""
HARMONY = """\
{%- if messages[0].role == "developer" or messages[0].role == "system" %}
    {{- "<|start|>developer<|message|># Instructions\\n\\n" + messages[0].content + "<|end|>" }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == "assistant" %}
        {%- if message.thinking %}
            {{- "<|start|>assistant<|channel|>analysis<|message|>" + message.thinking + "<|end|>" }}
        {%- endif %}
        {{- "<|start|>assistant<|channel|>final<|message|>" + message.content + "<|end|>" }}
    {%- elif message.role == "user" %}
        {{- "<|start|>user<|message|>" + message.content + "<|end|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}<|start|>assistant{%- endif %}"""

STYLES = {
    "chatml": CHATML,
    "llama3": LLAMA3,
    "mistral": MISTRAL,
    "gemma": GEMMA,
    "qwen": QWEN,
    "kimi": KIMI,
    "harmony": HARMONY,
}
