"""Rows in the shapes of public data sets, written from their documented schemas; and decoys that are none."""

U, A, S = "What is a sloth?", "A slow animal.", "Be brief."
MESSAGES = [{"role": "user", "content": U}, {"role": "assistant", "content": A}]
SHAREGPT = [{"from": "human", "value": U}, {"from": "gpt", "value": A}]
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}]
HH = f"\n\nHuman: {U}\n\nAssistant: "
PART = {"type": "text", "text": U}

# name: (row, kind, what the mapping must hold)
KNOWN: dict[str, tuple[dict, str, dict[str, str]]] = {
    "xlam-function-calling": (
        {
            "id": 0,
            "query": U,
            "answers": '[{"name": "f", "arguments": {"x": 1}}]',
            "tools": '[{"name": "f", "description": "d", "parameters": {"x": {"type": "int"}}}]',
        },
        "question_answer",
        {"user": "query", "calls": "answers", "tools": "tools"},
    ),
    "cot-collection": (
        {"source": U, "target": A, "rationale": "hm", "task": "t", "type": "CoT"},
        "question_answer",
        {"user": "source", "reasoning": "rationale", "assistant": "target"},
    ),
    "arena-pairs": (
        {
            "question_id": 1,
            "model_a": "x",
            "model_b": "y",
            "winner": "model_a",
            "conversation_a": MESSAGES,
            "conversation_b": [MESSAGES[0], {"role": "assistant", "content": "No."}],
            "turn": 1,
        },
        "preference",
        {"first": "conversation_a", "second": "conversation_b", "winner": "winner"},
    ),
    # conversations
    "openai": ({"messages": MESSAGES}, "messages", {"messages": "messages"}),
    "openai with system": (
        {"messages": [{"role": "system", "content": S}, *MESSAGES]},
        "messages",
        {"messages": "messages"},
    ),
    "openai with tools": (
        {
            "messages": [MESSAGES[0], {"role": "assistant", "content": None, "tool_calls": [CALL]}],
            "tools": TOOLS,
        },
        "messages",
        {"messages": "messages", "tools": "tools"},
    ),
    "openai with reasoning": (
        {"messages": [MESSAGES[0], {**MESSAGES[1], "reasoning_content": "hm"}]},
        "messages",
        {"messages": "messages"},
    ),
    "ultrachat_200k": (
        {"prompt": U, "prompt_id": "x", "messages": MESSAGES},
        "messages",
        {"messages": "messages"},
    ),
    "tulu-3": ({"id": "x", "messages": MESSAGES, "source": "ai2"}, "messages", {"messages": "messages"}),
    "smoltalk": ({"messages": MESSAGES, "source": "s"}, "messages", {"messages": "messages"}),
    "lmsys-chat-1m": (
        {
            "conversation_id": "x",
            "model": "m",
            "conversation": MESSAGES,
            "turn": 1,
            "language": "en",
            "redacted": False,
        },
        "messages",
        {"messages": "conversation"},
    ),
    "wildchat": (
        {"conversation_hash": "x", "model": "gpt-4", "conversation": MESSAGES, "toxic": False},
        "messages",
        {"messages": "conversation"},
    ),
    "no_robots": (
        {"prompt": U, "prompt_id": "x", "messages": MESSAGES, "category": "c"},
        "messages",
        {"messages": "messages"},
    ),
    "gemma roles": (
        {"messages": [MESSAGES[0], {"role": "model", "content": A}]},
        "messages",
        {"messages": "messages"},
    ),
    "unusual column name": ({"talk": MESSAGES, "n": 1}, "messages", {"messages": "talk"}),
    "a list as json text": (
        {"messages": '[{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]'},
        "messages",
        {"messages": "messages"},
    ),
    "openhermes-2.5": ({"conversations": SHAREGPT, "source": "x"}, "sharegpt", {"messages": "conversations"}),
    "sharegpt with system column": (
        {"system": S, "conversations": SHAREGPT},
        "sharegpt",
        {"messages": "conversations", "system": "system"},
    ),
    "slimorca": (
        {"conversations": [{"from": "system", "value": S, "weight": None}, *SHAREGPT]},
        "sharegpt",
        {"messages": "conversations"},
    ),
    "finetome": (
        {"conversations": SHAREGPT, "source": "s", "score": 5.2},
        "sharegpt",
        {"messages": "conversations"},
    ),
    "sharegpt with tools": (
        {
            "conversations": [
                SHAREGPT[0],
                {"from": "function_call", "value": '{"name": "f", "arguments": {}}'},
                {"from": "observation", "value": "1"},
                SHAREGPT[1],
            ],
            "tools": "[]",
        },
        "sharegpt",
        {"messages": "conversations", "tools": "tools"},
    ),
    "from user and chatgpt": (
        {"items": [{"from": "user", "value": U}, {"from": "chatgpt", "value": A}]},
        "sharegpt",
        {"messages": "items"},
    ),
    "speaker and text": (
        {"dialogue": [{"speaker": "user", "text": U}, {"speaker": "assistant", "text": A}]},
        "sharegpt",
        {"messages": "dialogue"},
    ),
    "customer and agent": (
        {"conversation": [{"speaker": "customer", "text": U}, {"speaker": "agent", "text": A}]},
        "sharegpt",
        {"messages": "conversation"},
    ),
    "puffin / capybara": (
        {"source": "x", "conversation": [{"input": U, "output": A}, {"input": U, "output": A}]},
        "sharegpt",
        {"messages": "conversation"},
    ),
    "moss / firefly": (
        {"conversation_id": 1, "conversation": [{"human": U, "assistant": A}]},
        "sharegpt",
        {"messages": "conversation"},
    ),
    "ultrachat": ({"id": "0", "data": [U, A, U, A]}, "sharegpt", {"messages": "data"}),
    "daily_dialog": ({"dialog": [U, A, U], "act": [1, 2, 1]}, "sharegpt", {"messages": "dialog"}),
    "openai upper case": (
        {"messages": [{"role": "USER", "content": U}, {"role": "Assistant", "content": A}]},
        "messages",
        {"messages": "messages"},
    ),
    # instruction and answer
    "alpaca": (
        {"instruction": U, "input": "", "output": A},
        "alpaca",
        {"user": "instruction", "assistant": "output"},
    ),
    "alpaca with text": (
        {"instruction": U, "input": "i", "output": A, "text": f"Below is… {U} {A}"},
        "alpaca",
        {"user": "instruction", "context": "input", "assistant": "output"},
    ),
    "dolly-15k": (
        {"instruction": U, "context": "", "response": A, "category": "open_qa"},
        "alpaca",
        {"user": "instruction", "context": "context", "assistant": "response"},
    ),
    "llama-factory alpaca": (
        {"instruction": U, "input": "", "output": A, "system": S, "history": [[U, A]]},
        "alpaca",
        {"system": "system", "history": "history"},
    ),
    "code-alpaca": (
        {"prompt": "…", "instruction": U, "input": "", "output": A},
        "alpaca",
        {"user": "instruction"},
    ),
    "evol-instruct": ({"instruction": U, "output": A}, "alpaca", {"assistant": "output"}),
    "wizardlm": ({"idx": "x", "instruction": U, "response": A}, "alpaca", {"assistant": "response"}),
    "openorca": (
        {"id": "x", "system_prompt": S, "question": U, "response": A},
        "question_answer",
        {"user": "question", "system": "system_prompt", "assistant": "response"},
    ),
    "gsm8k": ({"question": U, "answer": A}, "question_answer", {"user": "question", "assistant": "answer"}),
    "metamathqa": (
        {"type": "t", "query": U, "original_question": "o", "response": A},
        "question_answer",
        {"user": "query", "assistant": "response"},
    ),
    "medical-o1": (
        {"Question": U, "Complex_CoT": "hm", "Response": A},
        "question_answer",
        {"user": "Question", "reasoning": "Complex_CoT", "assistant": "Response"},
    ),
    "openmathinstruct": (
        {"problem": U, "generated_solution": A, "expected_answer": "4", "problem_source": "m"},
        "question_answer",
        {"user": "problem", "assistant": "generated_solution"},
    ),
    "numinamath-cot without messages": (
        {"source": "s", "problem": U, "solution": A},
        "question_answer",
        {"user": "problem", "assistant": "solution"},
    ),
    "s1k": (
        {"question": U, "solution": A, "thinking_trajectory": "hm", "cot_type": "math"},
        "question_answer",
        {"reasoning": "thinking_trajectory"},
    ),
    "squad": (
        {
            "id": "x",
            "title": "t",
            "context": "c",
            "question": U,
            "answers": {"text": [A], "answer_start": [0]},
        },
        "question_answer",
        {"user": "question", "context": "context", "assistant": "answers"},
    ),
    "trivia_qa": (
        {"question": U, "question_id": "x", "answer": {"value": A, "aliases": [A]}},
        "question_answer",
        {"assistant": "answer"},
    ),
    "sql-create-context": (
        {"question": U, "context": "CREATE TABLE t (x INT)", "answer": "SELECT x FROM t"},
        "question_answer",
        {"context": "context"},
    ),
    "guanaco-like pairs": ({"human": U, "assistant": A}, "question_answer", {"user": "human"}),
    "input and output": ({"input": U, "output": A}, "question_answer", {"user": "input"}),
    "inputs and targets (flan)": ({"inputs": U, "targets": A}, "question_answer", {"user": "inputs"}),
    "prompt and completion": ({"prompt": U, "completion": A}, "prompt_completion", {"user": "prompt"}),
    "prompt and response": ({"prompt": U, "response": A}, "question_answer", {"assistant": "response"}),
    "trl conversational": (
        {"prompt": MESSAGES[:1], "completion": MESSAGES[1:]},
        "prompt_completion",
        {"prompt": "prompt", "completion": "completion"},
    ),
    "cnn_dailymail": (
        {"article": U, "highlights": A, "id": "x"},
        "question_answer",
        {"user": "article", "assistant": "highlights"},
    ),
    "samsum": ({"id": "x", "dialogue": U, "summary": A}, "question_answer", {"user": "dialogue"}),
    # text
    "wikitext": ({"text": U}, "text", {"text": "text"}),
    "fineweb": (
        {"text": U, "id": "x", "dump": "d", "url": "u", "date": "d", "language": "en", "token_count": 3},
        "text",
        {"text": "text"},
    ),
    "tinystories": ({"story": U}, "text", {"text": "story"}),
    "the-stack": (
        {"content": "def f(): pass", "max_stars_repo_name": "r", "size": 3, "lang": "Python"},
        "text",
        {"text": "content"},
    ),
    "openassistant-guanaco": ({"text": f"### Human: {U}### Assistant: {A}"}, "text", {"text": "text"}),
    # preference
    "trl explicit": (
        {"prompt": U, "chosen": A, "rejected": "No."},
        "preference",
        {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected"},
    ),
    "trl explicit conversational": (
        {
            "prompt": MESSAGES[:1],
            "chosen": MESSAGES[1:],
            "rejected": [{"role": "assistant", "content": "No."}],
        },
        "preference",
        {"prompt": "prompt"},
    ),
    "trl implicit conversational": (
        {"chosen": MESSAGES, "rejected": [MESSAGES[0], {"role": "assistant", "content": "No."}]},
        "preference",
        {"chosen": "chosen"},
    ),
    "hh-rlhf": ({"chosen": HH + A, "rejected": HH + "No."}, "preference", {"rejected": "rejected"}),
    "ultrafeedback_binarized": (
        {
            "prompt": U,
            "prompt_id": "x",
            "chosen": MESSAGES,
            "rejected": MESSAGES,
            "messages": MESSAGES,
            "score_chosen": 8.0,
            "score_rejected": 3.0,
        },
        "preference",
        {"prompt": "prompt", "chosen": "chosen"},
    ),
    "orca_dpo_pairs": (
        {"system": S, "question": U, "chosen": A, "rejected": "No."},
        "preference",
        {"prompt": "question", "system": "system"},
    ),
    "llama-factory dpo": (
        {
            "conversations": SHAREGPT[:1],
            "chosen": {"from": "gpt", "value": A},
            "rejected": {"from": "gpt", "value": "No."},
        },
        "preference",
        {"prompt": "conversations"},
    ),
    "stack-exchange-paired": (
        {"qid": 1, "question": U, "response_j": A, "response_k": "No."},
        "preference",
        {"chosen": "response_j", "rejected": "response_k"},
    ),
    "better and worse": (
        {"prompt": U, "better_response": A, "worse_response": "No."},
        "preference",
        {"chosen": "better_response"},
    ),
    "pku-saferlhf": (
        {"prompt": U, "response_0": A, "response_1": "No.", "better_response_id": 0, "safer_response_id": 0},
        "preference",
        {"first": "response_0", "winner": "better_response_id"},
    ),
    "chatbot arena pairs": (
        {"prompt": U, "response_a": A, "response_b": "No.", "winner": "model_a"},
        "preference",
        {"winner": "winner"},
    ),
    # KTO
    "trl kto": (
        {"prompt": U, "completion": A, "label": True},
        "kto",
        {"prompt": "prompt", "completion": "completion", "label": "label"},
    ),
    "kto-mix-14k": (
        {"prompt": MESSAGES[:1], "completion": MESSAGES[1:], "label": False},
        "kto",
        {"completion": "completion"},
    ),
    "llama-factory kto": ({"messages": MESSAGES, "label": True}, "kto", {"messages": "messages"}),
    # prompts for RL
    "prompts alone": ({"prompt": U}, "prompt_only", {"prompt": "prompt"}),
    "trl prompt-only conversational": ({"prompt": MESSAGES[:1]}, "prompt_only", {"prompt": "prompt"}),
    "prompt with ground truth": (
        {"prompt": U, "ground_truth": "4"},
        "prompt_only",
        {"prompt": "prompt", "answer": "ground_truth"},
    ),
    "verl": (
        {
            "data_source": "gsm8k",
            "prompt": MESSAGES[:1],
            "ability": "math",
            "reward_model": {"style": "rule", "ground_truth": "4"},
        },
        "prompt_only",
        {"prompt": "prompt", "answer": "reward_model"},
    ),
    "a number to check by": (
        {"question": U, "answer": 4},
        "prompt_only",
        {"prompt": "question", "answer": "answer"},
    ),
    "conversational prompt with answer": (
        {"prompt": MESSAGES[:1], "answer": "4"},
        "prompt_only",
        {"prompt": "prompt", "answer": "answer"},
    ),
    # vision and audio
    "llava": (
        {"id": "x", "image": "a.jpg", "conversations": SHAREGPT},
        "vision",
        {"images": "image", "messages": "conversations"},
    ),
    "messages with images": (
        {
            "messages": [{"role": "user", "content": [{"type": "image"}, PART]}, MESSAGES[1]],
            "images": ["a.png"],
        },
        "vision",
        {"images": "images", "messages": "messages"},
    ),
    "parts with urls": (
        {
            "messages": [
                {
                    "role": "user",
                    "content": [{"type": "image_url", "image_url": {"url": "http://x/a.png"}}, PART],
                },
                {"role": "assistant", "content": [{"type": "text", "text": A}]},
            ]
        },
        "vision",
        {"messages": "messages"},
    ),
    "vqa": (
        {"image": {"bytes": b"x", "path": None}, "question": U, "answer": A},
        "vision",
        {"images": "image", "user": "question"},
    ),
    "captions": (
        {"image": {"bytes": b"x", "path": None}, "caption": A},
        "vision",
        {"images": "image", "assistant": "caption"},
    ),
    "latex_ocr": (
        {"image": {"bytes": b"x", "path": None}, "text": "x^2"},
        "vision",
        {"assistant": "text"},
    ),
    "common_voice": (
        {
            "client_id": "x",
            "path": "a.mp3",
            "audio": {"path": "a", "array": [0.0], "sampling_rate": 16000},
            "sentence": A,
        },
        "audio",
        {"audio": "audio", "assistant": "sentence"},
    ),
    "librispeech": (
        {"file": "a.flac", "audio": {"path": "a", "array": [0.0], "sampling_rate": 16000}, "text": A},
        "audio",
        {"assistant": "text"},
    ),
    # token ids
    "tokenised": (
        {"input_ids": [1, 2], "attention_mask": [1, 1], "labels": [-100, 2]},
        "tokenised",
        {"labels": "labels"},
    ),
}

DECOYS: dict[str, dict] = {
    "imdb": {"text": "A fine film.", "label": 1},
    "numbers": {"x": 1.0, "y": 2.0, "z": 3},
    "iris": {"sepal_length": 5.1, "petal_width": 0.2, "species": "setosa"},
    "ner": {"tokens": ["Sloths", "sleep"], "ner_tags": [1, 0]},
    "nli": {"premise": "A sloth.", "hypothesis": "An animal.", "label": 0},
    "sentence pairs": {"sentence1": "a b", "sentence2": "c d", "label": 1, "idx": 0},
    "triplets": {"anchor": "a", "positive": "b", "negative": "c"},
    "retrieval": {"query_id": 1, "passage_id": 2, "score": 0.5},
    "embeddings": {"id": "x", "embedding": [0.1, 0.2]},
    "one turn a row": {"conversation_id": 1, "role": "user", "content": "hi"},
    "people": {"name": "Ada", "email": "a@b.c", "phone": "1"},
    "translations": {"translation": {"en": "sloth", "de": "Faultier"}},
    "products": {"title": "Hammock", "price": 9.5, "stars": 4},
    "mail": {"from": "a@b.c", "to": "d@e.f", "subject": "s", "body": "b"},
    "logs": {"timestamp": "t", "level": "INFO", "message": "started"},
    "images with a class": {"image": {"bytes": b"x", "path": None}, "label": 3},
    "list of people": {"conversations": [{"name": "Ada", "age": 3}]},
    "strangers talking": {
        "dialogue": [{"speaker": "Romeo", "text": "hi"}, {"speaker": "Juliet", "text": "yo"}]
    },
    "key and value": {"key": "a", "value": "b"},
    "multiple choice": {"question": "q", "choices": ["a", "b"], "subject": "s"},
    "regression": {"input": 1.5, "output": 2.5},
    "time series": {"start": "2020", "target": [1.0, 2.0]},
    "languages": {"en": "sloth", "de": "Faultier"},
    "empty cells": {"instruction": None, "output": None},
}
