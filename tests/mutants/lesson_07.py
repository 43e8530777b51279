"""Wrong solutions of lesson 7's exercises, and right but odd ones. See tests/test_assignments.py."""

# What is replaced more than once
PREPARED = '''        enlarged = F.interpolate(low_res, scale_factor=FACTOR, mode="bilinear")
        return {"enlarged": enlarged, **diffusion.prepare(model, **cond)}'''
ENLARGED = '''            enlarged = F.interpolate(low_res, scale_factor=FACTOR, mode="bilinear")
        if enlarged.shape[2:]'''
CALL = "return model(torch.cat([x, enlarged], dim=1), t, **cond)"
ROUND = "return diffusion.to_bytes(x).float() / 127.5 - 1"
NOISE = "x = noise * diffusion.gaussian(low_res.new_empty(B, C, FACTOR * H, FACTOR * W), generator)"
SAMPLE = ('return getattr(process, f"{sampler}_sample")(model, x, '
          'low_res=round_to_bytes(low_res), generator=generator, **cond)')


def enlarged(how):
    """In the place of ENLARGED: another way to make it."""
    return f"            enlarged = {how}\n        if enlarged.shape[2:]"


def sample(options, result=""):
    """In the place of SAMPLE: the sampler called with other arguments."""
    return f'return getattr(process, f"{{sampler}}_sample")(model, x, {options}){result}'


# (exercise, what stands in the module, what replaces it, words of the idea that the message must name)
MUTANTS = [
    # 7.1 with_low_res
    ("7.1", ENLARGED, enlarged("F.interpolate(low_res, scale_factor=FACTOR)"), "not nearest"),
    ("7.1", ENLARGED, enlarged("low_res.repeat_interleave(FACTOR, 2).repeat_interleave(FACTOR, 3)"), "not nearest"),
    ("7.1", ENLARGED, enlarged('F.interpolate(low_res, scale_factor=FACTOR, mode="bicubic")'), "not bicubic"),
    ("7.1", ENLARGED, enlarged('F.interpolate(low_res, scale_factor=FACTOR, mode="bilinear", align_corners=True)'),
     "without align_corners"),
    ("7.1", ENLARGED, enlarged('F.interpolate(low_res, x.shape[2:], mode="bilinear")'), "four times smaller"),
    ("7.1", ENLARGED, enlarged('F.interpolate(low_res, scale_factor=2, mode="bilinear").repeat(1, 1, 2, 2)'),
     "bilinear"),
    ("7.1", ENLARGED, enlarged('F.interpolate(round_to_bytes(low_res), scale_factor=FACTOR, mode="bilinear")'),
     "enlarged bilinearly"),
    ("7.1", ENLARGED, enlarged('F.interpolate(low_res, scale_factor=FACTOR, mode="bilinear")\n'
                               "            enlarged = enlarged + 0.05 * torch.randn_like(enlarged)"), "not noised"),
    ("7.1", ENLARGED, enlarged('F.interpolate(low_res, scale_factor=FACTOR, mode="bilinear") - x'),
     "the same whatever x"),
    ("7.1", PREPARED, PREPARED.replace("bilinear", "bicubic"), "changes nothing"),
    ("7.1", PREPARED, PREPARED.replace("**diffusion.prepare(model, **cond)", "**cond"), "hands on"),
    ("7.1", PREPARED, PREPARED.replace(", **diffusion.prepare(model, **cond)", ""), "hands on"),
    ("7.1", PREPARED, '        return {"low_res": low_res, **diffusion.prepare(model, **cond)}', "prepare does once"),
    ("7.1", "    denoiser.prepare = inner_prepare\n", "", "prepare does once"),
    ("7.1", CALL, "return model(torch.cat([enlarged, x], dim=1), t, **cond)", "order of the channels"),
    ("7.1", CALL, "return model(x + enlarged, t, **cond)", "three more channels"),
    ("7.1", CALL, "return model(torch.cat([x, enlarged], dim=1), t)", "passes on all others"),
    ("7.1", CALL, "return model(torch.cat([x, enlarged], dim=1), 0 * t, **cond)", "how noisy x is"),
    ("7.1", CALL, "return model(torch.cat([x, enlarged], dim=1), t, **cond)[:, :3] - x", "not what it answers"),
    ("7.1", "if enlarged.shape[2:] != x.shape[2:]:", "if enlarged.shape[3:] != x.shape[3:]:", "four times smaller"),
    ("7.1", "            raise ValueError(f\"an image of", "            raise RuntimeError(f\"an image of",
     "what does not fit is refused"),
    # 7.2 round_to_bytes
    ("7.2", ROUND, "return diffusion.to_bytes(x)", "float32 image"),
    ("7.2", ROUND, "return diffusion.to_bytes(x).to(x.dtype) / 127.5 - 1", "float32 image"),
    ("7.2", ROUND, "return ((x.float() + 1) * 127.5).to(torch.uint8).float() / 127.5 - 1", "nearest byte"),
    ("7.2", ROUND, "return ((x.float() + 1) * 127.5).clamp(0, 255).to(torch.uint8).float() / 127.5 - 1",
     "nearest byte"),
    ("7.2", ROUND, "return ((x.float() + 1) * 127.5).ceil().clamp(0, 255) / 127.5 - 1", "nearest byte, not up"),
    ("7.2", ROUND, "return ((x.float() + 1) * 127.5).round().to(torch.uint8).float() / 127.5 - 1", "wrap around"),
    ("7.2", ROUND, "return ((x.float() + 1) * 127.5).round() / 127.5 - 1", "clipped"),
    ("7.2", ROUND, "return x.float().clamp(-1, 1)", "nearest byte"),
    ("7.2", ROUND, "return diffusion.to_bytes(x).float() / 255", "bytes stand for [-1, 1]"),
    ("7.2", ROUND, "return diffusion.to_bytes(x).float() / 128 - 1", "bytes stand for [-1, 1]"),
    ("7.2", ROUND, "return (x.float().clamp(-1, 1) * 127).round() / 127", "the 256 values"),
    ("7.2", ROUND, "return (x.float().clamp(-1, 1) * 128).round() / 128", "the 256 values"),
    ("7.2", ROUND, "return diffusion.to_bytes(x.clamp_(-1, 1)).float() / 127.5 - 1", "belongs to the caller"),
    ("7.2", ROUND, "return diffusion.to_bytes(x)[:3].float() / 127.5 - 1", "as an 8-bit file holds it"),
    # 7.3 upsample
    ("7.3", NOISE, NOISE.replace("noise * ", ""), "scales x_T"),
    ("7.3", NOISE, NOISE.replace("noise * ", "0.997 * "), "scales x_T"),
    ("7.3", NOISE, NOISE.replace("noise * ", "noise ** 0.5 * "), "scales x_T"),
    ("7.3", NOISE, NOISE.replace("noise * ", "noise ** 2 * "), "scales x_T"),
    ("7.3", NOISE, NOISE.replace("FACTOR * H, FACTOR * W", "FACTOR * W, FACTOR * H"), "both sides"),
    ("7.3", NOISE, NOISE.replace("FACTOR * H, FACTOR * W", "H, W"), "both sides"),
    ("7.3", NOISE, NOISE.replace("FACTOR * H, FACTOR * W), generator)", "FACTOR * H, FACTOR * W), None)"),
     "drawn by the generator"),
    ("7.3", NOISE, NOISE + "\n    x = x + F.interpolate(low_res, scale_factor=FACTOR)", "not the beginning"),
    ("7.3", SAMPLE, sample("low_res=low_res, generator=generator, **cond"), "rounded to bytes"),
    ("7.3", SAMPLE, sample("low_res=low_res.clamp(-1, 1), generator=generator, **cond"), "rounded to bytes"),
    ("7.3", SAMPLE, sample("low_res=diffusion.to_bytes(low_res).float(), generator=generator, **cond"),
     "rounded to bytes"),
    ("7.3", SAMPLE, sample("low_res=round_to_bytes(low_res), **cond"), "the sampler gets the generator"),
    ("7.3", SAMPLE, sample("low_res=round_to_bytes(low_res), generator=generator"), "passed on to the sampler"),
    ("7.3", SAMPLE, sample("low_res=round_to_bytes(low_res), generator=generator, **cond", "[:, :3].clamp(-1, 1)"),
     "what the sampler returns"),
    ("7.3", SAMPLE, sample("low_res=round_to_bytes(low_res), generator=generator, eta=1.0, **cond"), "eta 0"),
    ("7.3", SAMPLE, SAMPLE.replace('getattr(process, f"{sampler}_sample")', "process.ddim_sample"), "by its name"),
    ("7.3", SAMPLE, SAMPLE.replace("(model, x,", "(with_low_res(model), x,"), "used as it is"),
    ("7.3", SAMPLE, SAMPLE.replace("round_to_bytes(low_res), generator",
                                   'F.interpolate(round_to_bytes(low_res), scale_factor=4), generator'),
     "low_res that the denoiser is given"),
]

# (exercise, what stands in the module, what replaces it): right, if unusual, solutions
VARIANTS = [
    ("7.1", ENLARGED, enlarged(                              # both sides by hand: a matrix of weights for each
        "low_res\n            for side in (2, 3):\n"
        "                n = enlarged.shape[side]\n"
        "                at = ((torch.arange(4 * n, dtype=torch.float64) + 0.5) / 4 - 0.5).clamp(0, n - 1)\n"
        "                w = (1 - (at[:, None] - torch.arange(n)).abs()).clamp(min=0)\n"
        "                enlarged = (enlarged.double().transpose(side, 3) @ w.T).transpose(side, 3).float()")),
    ("7.1", ENLARGED, enlarged("torch.nn.Upsample(scale_factor=4, mode='bilinear', align_corners=False)(low_res)")),
    ("7.1", CALL, "both = x.new_empty(len(x), 6, *x.shape[2:])\n        both[:, :3], both[:, 3:] = x, enlarged\n"
     "        return model(both, t, **cond)"),
    ("7.2", ROUND, "return (torch.floor((x.double().clamp(-1, 1) + 1) * 127.5 + 0.5) / 127.5 - 1).float()"),
    ("7.2", ROUND, "values = [min(255, max(0, round((float(v) + 1) * 127.5))) / 127.5 - 1 for v in x.flatten()]\n"
     "    return torch.tensor(values).view(x.shape)"),
    ("7.3", NOISE, "x = diffusion.gaussian(torch.zeros(B, C, 4 * H, 4 * W), generator)\n    x = noise * x"),
    ("7.3", SAMPLE, '''samplers = {"ddim": process.ddim_sample, "ddpm": process.ddpm_sample, "dpm": process.dpm_sample}
    cond |= {"low_res": round_to_bytes(low_res)}
    return samplers[sampler](model=model, x_T=x, generator=generator, **cond)'''),
]
