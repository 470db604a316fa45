"""30 sound GGUF files: 30 architectures, tokenizers of every kind, and 30 chat templates in the forms that models have
(turns between marks, system turns folded in, tools, calls and results, thinking, dates, parts of several kinds, macros,
namespaces). Written for these tests."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np


def _turns(start: str, middle: str, end: str, ask: str, before: str = "") -> str:
    """Turns between marks; `ask` opens the answer."""
    return (
        f"{{%- for message in messages %}}\n{{{{- '{before}{start}' + message['role'] + '{middle}' }}}}\n"
        f"{{{{- message['content'] | trim }}}}\n{{{{- '{end}' }}}}\n{{%- endfor %}}\n"
        f"{{%- if add_generation_prompt %}}\n{{{{- '{ask}' }}}}\n{{%- endif %}}"
    )


_SYSTEM_FIRST = """{%- if messages[0].role == 'system' %}
    {%- set system_message = messages[0].content %}
    {%- set rest = messages[1:] %}
{%- else %}
    {%- set system_message = 'You are a careful assistant that answers in plain words.' %}
    {%- set rest = messages %}
{%- endif %}
"""
_ALTERNATE = """{%- for message in rest %}
    {%- if (message.role == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('Roles must go user, assistant, user, assistant and so on.') }}
    {%- endif %}
"""
_TOOLS = """{%- if tools %}
    {{- '# Tools\\n\\nYou may call these functions to help with the question of the user:\\n<tools>' }}
    {%- for tool in tools %}
        {{- '\\n' }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- '\\n</tools>\\nAnswer a call as JSON between <call> and </call>.\\n' }}
{%- endif %}
"""
_CALLS = """{%- for message in messages %}
    {%- if message.role == 'tool' %}
        {{- '<|im_start|>user\\n<result>\\n' + message.content + '\\n</result><|im_end|>\\n' }}
    {%- elif message.role == 'assistant' and message.tool_calls %}
        {{- '<|im_start|>assistant\\n' }}
        {%- for call in message.tool_calls %}
            {%- if call.function %}{%- set call = call.function %}{%- endif %}
            {{- '<call>{"name": "' + call.name + '", "arguments": ' }}
            {%- if call.arguments is string %}{{- call.arguments }}{%- else %}{{- call.arguments | tojson }}{%- endif %}
            {{- '}</call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""
_THINK = """{%- set ns = namespace(last=-1) %}
{%- for message in messages %}{%- if message.role == 'user' %}{%- set ns.last = loop.index0 %}{%- endif %}{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else '' %}
    {%- if message.role == 'assistant' and '</think>' in content %}
        {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
    {%- endif %}
    {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}"""
_PARTS = """{%- macro show(content) %}
    {%- if content is string %}{{- content }}
    {%- else %}
        {%- for part in content %}
            {%- if part.type == 'image' or 'image_url' in part %}{{- '<image>' }}
            {%- elif part.type == 'text' %}{{- part.text }}{%- endif %}
        {%- endfor %}
    {%- endif %}
{%- endmacro %}
{%- for message in messages %}
{{- '<|' + message.role + '|>' }}{{- show(message.content) }}{{- '<|end|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|assistant|>' }}{%- endif %}"""
_DATED = """{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}{%- set date_string = strftime_now('%d %b %Y') %}
    {%- else %}{%- set date_string = '26 Jul 2024' %}{%- endif %}
{%- endif %}
{{- '<|head|>system<|/head|>\\nToday is ' + date_string + '\\n' }}
{%- for message in messages %}
    {{- '<|head|>' + message['role'] + '<|/head|>\\n' + message['content'] | trim + '<|turn|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|head|>assistant<|/head|>\\n' }}{%- endif %}"""
_INST = (
    _SYSTEM_FIRST
    + "{{- bos_token }}\n"
    + _ALTERNATE
    + """    {%- if message.role == 'user' %}
        {%- if loop.first and system_message is defined %}
            {{- '[INST] ' + system_message + '\\n\\n' + message.content + ' [/INST]' }}
        {%- else %}{{- '[INST] ' + message.content + ' [/INST]' }}{%- endif %}
    {%- else %}{{- ' ' + message.content + eos_token }}{%- endif %}
{%- endfor %}"""
)
_MODEL_ROLE = """{{- bos_token }}
{%- for message in messages %}
    {%- set role = 'model' if message['role'] == 'assistant' else message['role'] %}
    {{- '<turn>' + role + '\\n' + message['content'] | trim + '</turn>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<turn>model\\n' }}{%- endif %}"""
_WORDS = (
    _SYSTEM_FIRST
    + """{{- system_message + '\\n\\n' }}
{%- for message in rest %}
{{- 'USER: ' + message.content + ' ' if message.role == 'user' else 'ASSISTANT: ' + message.content + eos_token }}
{%- endfor %}
{%- if add_generation_prompt %}{{- 'ASSISTANT:' }}{%- endif %}"""
)
_RULED = (
    _SYSTEM_FIRST
    + """{{- system_message + '\\n\\n' }}
{%- for message in rest %}
{{- '### Question:\\n' + message.content + '\\n\\n' if message.role == 'user' else '### Answer:\\n' + message.content + '\\n\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '### Answer:\\n' }}{%- endif %}"""
)
_LAST_ONLY = """{%- set loop_messages = messages %}
{%- for message in loop_messages %}
{%- if not loop.last %}{{- message.role + ': ' + message.content + '\\n' }}{%- else %}{{- 'now ' + message.role + ': ' + message.content }}{%- endif %}
{%- endfor %}
{{- '\\nanswer: ' if add_generation_prompt else '' }}"""
_TRAINED = """{%- for message in messages %}
{%- if message.role == 'assistant' %}{{- '<a>' }}{% generation %}{{- message.content }}{% endgeneration %}{{- '</a>' }}
{%- else %}{{- '<q>' + message.content + '</q>' }}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<a>' }}{%- endif %}"""
_BREAKS = """{%- for message in messages %}
{%- if message.role not in ['system', 'user', 'assistant', 'tool'] %}{%- continue %}{%- endif %}
{{- '‹' + message.role + '›' + message.content + '‹/›' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '‹assistant›' }}{%- endif %}"""

TEMPLATES = (
    _turns("<|im_start|>", "\\n", "<|im_end|>\\n", "<|im_start|>assistant\\n"),
    _turns("<|start|>", "<|say|>", "<|stop|>", "<|start|>assistant<|say|>"),
    _turns("<|", "|>\\n", "</s>\\n", "<|assistant|>\\n"),
    _turns("<｜", "｜>", "<｜end▁of▁turn｜>", "<｜assistant｜>"),
    _turns("[", "] ", "\\n", "[assistant] "),
    _turns("<", ">", "</turn>", "<assistant>"),
    _turns("", ": ", "\\n\\n", "assistant: "),
    _turns("«", "» ", " «/»", "«assistant»"),
    _turns("<extra_id_0>", "\\n", "\\n", "<extra_id_0>assistant\\n", before=" "),
    _turns("<reserved_1>", " ", "<reserved_2>", "<reserved_1>assistant "),
    _INST, _MODEL_ROLE, _WORDS, _RULED, _LAST_ONLY, _TRAINED, _BREAKS, _DATED, _PARTS, _THINK,
    "{{- '<|im_start|>system\\n' }}" + _TOOLS + "{{- '<|im_end|>\\n' }}" + _CALLS,
    _INST.replace("[INST] ", "<s>[INST]").replace("[/INST]", "[/INST] "),
    _MODEL_ROLE.replace("turn>", "start_of_turn>"), _WORDS.replace("USER", "Human"), _RULED.replace("###", "##"),
    _DATED.replace("Today is", "Current date:"), _PARTS.replace("<image>", "<|vision|><|pad|>"),
    _THINK.replace("<think>", "<reason>").replace("</think>", "</reason>"),
    _TOOLS + _THINK, _SYSTEM_FIRST + "{{- system_message }}\n" + _turns("<u>", ":", "</u>", "<u>assistant:"),
)  # fmt: skip

ARCHITECTURES = (
    "llama", "qwen2", "qwen3", "qwen3moe", "qwen2moe", "gemma", "gemma2", "gemma3", "phi2", "phi3", "mistral3", "deepseek2",
    "command-r", "cohere2", "granite", "granitemoe", "olmo2", "olmoe", "falcon", "gpt2", "gptneox", "starcoder2", "stablelm",
    "internlm2", "minicpm", "exaone", "nemotron", "glm4", "smollm3", "mamba", "baichuan", "orion", "bloom", "mpt", "xverse",
)  # fmt: skip
TOKENIZERS = (
    ("llama", "default"), ("gpt2", "llama-bpe"), ("gpt2", "qwen2"), ("gpt2", "gpt-2"), ("bert", "default"), ("t5", "default"),
    ("rwkv", "default"), ("gpt2", "deepseek-llm"), ("gpt2", "command-r"), ("gpt2", "tekken"),
)  # fmt: skip


def write_clean(folder: Path) -> list[Path]:
    """The 30 files."""
    from quantplan.model.layer_rules import KNOWN_ARCHITECTURES

    known = [arch for arch in ARCHITECTURES if arch in KNOWN_ARCHITECTURES][:30]
    assert len(known) == len(set(TEMPLATES)) == 30
    return [_write(folder / f"{i:02d}-{arch}.gguf", i, arch) for i, arch in enumerate(known)]


def _write(path: Path, i: int, arch: str) -> Path:
    model, pre = TOKENIZERS[i % len(TOKENIZERS)]
    words = ["<s>", "</s>", "<unk>", "\x1b", "\u200b", "é", "世", "<|im_start|>", f"▁word{i}", "a", "b", "c"]
    writer = gguf.GGUFWriter(path, arch)
    writer.add_name(f"Fern {i} 世界 Instruct")
    writer.add_description("A small model for tests.\nIt knows a few words, and nothing else.")
    writer.add_license("apache-2.0")
    writer.add_base_model_count(1)
    writer.add_base_model_name(0, "Fern")
    writer.add_base_model_repo_url(0, "https://huggingface.co/fern/fern")
    writer.add_block_count(2)
    writer.add_context_length((2048, 32_768, 131_072, 1_048_576)[i % 4])
    writer.add_embedding_length(64)
    writer.add_head_count(4)
    writer.add_tokenizer_model(model)
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(words)
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_chat_template(TEMPLATES[i])
    writer.add_tensor("token_embd.weight", np.full((len(words), 64), 0.5, np.float32))
    for layer in range(2):
        kind = (np.float32, np.float16)[layer % 2]
        writer.add_tensor(f"blk.{layer}.attn_norm.weight", np.ones(64, kind))
    writer.add_tensor("output_norm.weight", np.ones(64, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
