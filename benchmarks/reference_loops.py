"""The papers' own training loops, written again from their descriptions with plain torch, transformers and PyG: what
the speed of the package is measured against.

They do what such loops usually do: every block for every token, scores of the whole vocabulary at all positions,
prompts padded to the maximal length or run one by one, the whole validation after every epoch, and an optimizer of
torch over whole tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch_geometric.nn import GCNConv

from raypft.encoded import Encoded


class GNNaviLoop:
    """A graph convolution between two blocks of a frozen GPT-2, trained prompt by prompt.

    Source: Yuan et al. 2024 (GNNavi), sections 3 and 4: GCN over all tokens, an edge from every token before a
    demonstration's label word to it and from each of these to the last token; cross-entropy over the label words;
    Adam, batches of one.

    Args:
        model: a transformers GPT-2 with language-model head; layer: how many blocks stand before the convolution.
        labels: the token of each label's word; graph: the convolution's first values, weight and bias.
    """

    def __init__(self, model: Any, layer: int, labels: Sequence[int], graph: dict[str, Tensor], lr: float) -> None:
        self.model = model.eval().requires_grad_(False)
        self.labels = torch.tensor(labels)
        self.graph = GCNConv(model.config.n_embd, model.config.n_embd)
        self.graph.load_state_dict(graph)
        self.optimizer = torch.optim.Adam(self.graph.parameters(), lr=lr)
        self.edges = torch.empty(2, 0, dtype=torch.long)
        self.handle = model.transformer.h[layer - 1].register_forward_hook(self._through_graph)

    def _through_graph(self, _block: nn.Module, _inputs: Any, output: Any) -> Any:
        states = output[0] if isinstance(output, tuple) else output  # [1, T, H]
        mixed = self.graph(states[0], self.edges).unsqueeze(0)
        return (mixed, *output[1:]) if isinstance(output, tuple) else mixed

    def scores(self, prompt: Encoded) -> Tensor:
        """Of the labels, [C]."""
        last, pairs = len(prompt.ids) - 1, []
        for anchor in prompt.marks["demo_label"]:
            pairs += [(token, anchor) for token in range(anchor)]
            pairs.append((anchor, last))
        self.edges = torch.tensor(pairs).T
        ids = torch.tensor([prompt.ids])
        logits = self.model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits  # [1, T, V]
        return logits[0, -1, self.labels]

    def epoch(self, prompts: Sequence[Encoded]) -> list[float]:
        """One step a prompt; their losses."""
        losses = []
        for prompt in prompts:
            loss = functional.cross_entropy(self.scores(prompt).unsqueeze(0), torch.tensor(prompt.gold))
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            losses.append(loss.item())
        return losses

    @torch.no_grad()
    def answers(self, prompts: Sequence[Encoded]) -> list[int]:
        """The index of each prompt's likeliest label."""
        return [int(self.scores(prompt).argmax()) for prompt in prompts]


class ToProLoop:
    """Full fine-tuning of a masked model on one prompt a word.

    Source: Ma et al. 2024 (ToPro), sections 3 and 4 and appendix: the prompt of a word is tokenized part by part and
    padded to 128 tokens; cross-entropy over the label words at the mask; batches of 8 in steps of 32 prompts; AdamW,
    linear to 0, gradients clipped at 1.

    Args:
        model: a transformers model with masked-language-model head; labels: the token of each tag's word.
        steps: of the whole training.
    """

    length = 128
    micro_batch = 8

    def __init__(self, model: Any, tokenizer: Any, labels: Sequence[int], lr: float = 1e-5, steps: int = 1) -> None:
        self.model, self.tokenizer, self.labels = model, tokenizer, torch.tensor(labels)
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.0)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: (steps - step) / steps)

    def prepare(self, sentences: Sequence[Sequence[str]]) -> dict[str, Tensor]:
        """The data set of all words of some sentences: each argument of the model and where the mask is, [N, 128]."""
        prompts = []
        for words in sentences:
            prompts += [self.prompt(" ".join(words), word) for word in words]
        return {name: torch.tensor([prompt[name] for prompt in prompts]) for name in prompts[0]}

    def prompt(self, sentence: str, word: str) -> dict[str, list[int]]:
        """The prompt of a word: each of its parts is tokenized, then they are cut, joined and padded."""
        tokenizer, mask = self.tokenizer, self.tokenizer.mask_token
        parts = [" The pos tag of", " " + word, " is a kind of:", " " + mask, " ."]
        asked = [token for part in parts for token in tokenizer.encode(part, add_special_tokens=False)]
        shown = tokenizer.encode(sentence, add_special_tokens=False)
        while len(shown) + len(asked) > self.length - 3:
            shown.pop()
        ids = [tokenizer.cls_token_id, *shown, tokenizer.sep_token_id, *asked, tokenizer.sep_token_id]
        segments = [0] * (len(shown) + 2) + [1] * (len(asked) + 1)
        missing = self.length - len(ids)
        return {
            "input_ids": ids + [tokenizer.pad_token_id] * missing,
            "attention_mask": [1] * len(ids) + [0] * missing,
            "token_type_ids": segments + [0] * missing,
            "at_mask": [int(token == tokenizer.mask_token_id) for token in ids] + [0] * missing,
        }

    def scores(self, rows: Sequence[int], data: dict[str, Tensor]) -> Tensor:
        """Of the labels, [B, C]."""
        batch = {name: values[rows] for name, values in data.items()}
        at_mask = batch.pop("at_mask").bool()
        logits = self.model(**batch).logits  # [B, 128, V]
        return logits[at_mask][:, self.labels]

    def step(self, rows: Sequence[int], data: dict[str, Tensor], gold: Sequence[int]) -> float:
        """One optimizer step on rows of a data set; their mean loss."""
        self.model.train()
        total = 0.0
        for start in range(0, len(rows), self.micro_batch):
            part = slice(start, start + self.micro_batch)
            scores, right = self.scores(rows[part], data), torch.tensor(gold[part])
            loss = functional.cross_entropy(scores, right, reduction="sum") / len(rows)
            loss.backward()
            total += loss.item()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()
        return total

    @torch.no_grad()
    def answers(self, data: dict[str, Tensor]) -> list[int]:
        """The index of each prompt's likeliest tag."""
        self.model.eval()
        found: list[int] = []
        rows = range(len(data["input_ids"]))
        for start in rows[:: self.micro_batch]:
            found += self.scores(list(rows[start : start + self.micro_batch]), data).argmax(1).tolist()
        return found
