"""Writes templates.json: Jinja templates in the formats of published models, and conversations rendered with each by jinja2.

    python tests/golden/templates.py

The templates are newly written, with the published ones' marks and spaces and whatever else identifies them; none is a copy. They are rendered
as in transformers.
"""

import json
from pathlib import Path

from jinja2.sandbox import ImmutableSandboxedEnvironment

HERE = Path(__file__).parent
QUESTIONS, ANSWERS = ["Is there a mass?", "Where?", "Sure?"], ["Yes.", "On the left."]


def instructions(opening, closing, answer, system=None, tools=False):
    """Mistral's: `[INST] question [/INST] answer</s>`, with the given spaces."""
    lines = ["{{- bos_token }}"]
    if system:
        lines.append("{%- if messages[0]['role'] == 'system' %}{{- '" + system + "' + messages[0]['content'] + '[/SYSTEM_PROMPT]' }}{%- endif %}")
    lines.append("{%- for message in messages %}{%- if message['role'] == 'user' %}")
    if tools:
        lines.append("{%- if tools is defined and loop.last %}{{- '[AVAILABLE_TOOLS]' + (tools | tojson) + '[/AVAILABLE_TOOLS]' }}{%- endif %}")
    lines.append("{{- '" + opening + "' + message['content'] + '" + closing + "' }}")
    lines.append("{%- elif message['role'] == 'assistant' %}{{- '" + answer + "' + message['content'] + eos_token }}{%- endif %}{%- endfor %}")
    return "\n".join(lines) + "\n"


LLAMA2 = """{%- for message in messages %}
{%- if message['role'] == 'user' %}
{{- bos_token + '[INST] ' + (('<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n') if system is defined and loop.first else '') + message['content'] + ' [/INST]' }}
{%- else %}{{- ' ' + message['content'] + ' ' + eos_token }}{%- endif %}
{%- endfor %}"""

CHATML = """{%- for message in messages %}
{%- if loop.first and message['role'] != 'system' %}
{{- '<|im_start|>system\\nYou answer questions about films.<|im_end|>\\n' }}
{%- endif %}
{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""

TEMPLATES = {
    "mistral v1": instructions("[INST] ", " [/INST]", " "),
    "mistral v3": instructions("[INST] ", "[/INST]", " ", tools=True),
    "mistral v3 tekken": instructions("[INST]", "[/INST]", "", tools=True),
    "mistral v7": instructions("[INST] ", "[/INST]", " ", system="[SYSTEM_PROMPT] "),
    "mistral v7 tekken": instructions("[INST]", "[/INST]", "", system="[SYSTEM_PROMPT]"),
    "llama-2": LLAMA2,
    "chatml": CHATML,
    "chatml without a system text": CHATML.replace("You answer questions about films.", "' + system + '").replace("loop.first", "system is defined"),
}


def main():
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    messages = [{"role": "user", "content": QUESTIONS[0]}]
    for answer, question in zip(ANSWERS, QUESTIONS[1:]):
        messages += [{"role": "assistant", "content": answer}, {"role": "user", "content": question}]
    cases = []
    for name, source in TEMPLATES.items():
        end = "<|im_end|>" if "chatml" in name else "</s>"
        text = environment.from_string(source).render(messages=messages, bos_token="<s>", eos_token=end, add_generation_prompt=True)
        cases.append({"name": name, "source": source, "text": text})
    golden = {"questions": QUESTIONS, "answers": ANSWERS, "cases": cases}
    (HERE / "templates.json").write_text(json.dumps(golden, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
