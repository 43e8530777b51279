"""Wrong solutions of lesson 9's exercises, and right but odd ones. See tests/test_assignments.py."""

# What is replaced more than once
HOLE = "known = torch.from_numpy(np.array(self.hole((size, size)))) == 0     # here white = draw becomes 1 = known"
MASKS = "known = known.to(device, torch.float32).expand(count, 1, -1, -1)"
IMAGES = "return pixels(self.image, size).to(device).expand(count, -1, -1, -1), known"
PROCESS = "process = diffusion.Diffusion.from_config(model.diffusion, how.steps, how.strength if init else 1.0)"
START = "x_T = diffusion.gaussian(torch.empty(len(prompts), 3, model.size, model.size, device=model.device), generator)"
SKETCH = "x_T = process.q_sample(pixels(init, model.size).to(x_T), t, x_T)"
NOISIEST = "t = torch.full((len(prompts),), process.timesteps[-1])"
GUIDED = "denoiser, grad_fn = guidance.classifier_free(model.denoiser, how.scale), None"
CLIP = "denoiser, grad_fn = model.denoiser, guidance.clip_guidance(clip.network, clip.embed(prompts), how.scale)"
SAMPLER = 'sampler = getattr(process, f"{how.sampler}_sample")'
SAMPLE = '''    return sampler(denoiser, x_T, generator=generator, grad_fn=grad_fn, x0_fn=x0_fn, callback=callback,
                   **shown, **model.encode(prompts))'''
BASE_KNOWN = '''    shown, x0_fn = around_known(known, model, len(prompts))
    denoiser, grad_fn'''
BASE_HOW = '''    how = options or default_options(model)
    process = diffusion.Diffusion.from_config(model.diffusion, how.steps, how.strength'''
LARGE = '''    process = diffusion.Diffusion.from_config(model.diffusion, how.steps)
    shown, x0_fn = around_known(known, model, len(prompts))
    return upsample.upsample(model.denoiser, low_res.to(model.device), process=process, sampler=how.sampler,
                             generator=generator, x0_fn=x0_fn, callback=callback, **shown, **model.encode(prompts))'''
LARGE_HOW = "    how = options or default_options(model)\n" + LARGE
NETWORK = "network = unet.UNet.from_saved(saved, path)\n        config"
DTYPE = "network = to_dtype(network, dtype or usual_dtype(config, device)).to(device)"
SCHEDULE = 'process = diffusion.DiffusionConfig(**saved["diffusion"])'
DENOISER = "denoiser = upsample.denoiser_of(network, config, process)"
MODEL = '''return cls(KINDS[config.in_channels], denoiser, config, process, saved["size"],
                   tokenizer.load_tokenizer(saved), device, saved["world"], saved.get("verbatim", False))'''

# (exercise, what stands in the module, what replaces it, words of the idea that the message must name)
MUTANTS = [
    # 9.1 InpaintInput.at
    ("9.1", HOLE, HOLE.replace("== 0", "!= 0"), "polarity"),
    ("9.1", HOLE, "known = 1 - torch.from_numpy(np.array(self.hole((size, size)))) / 255 * 0.9", "nothing between"),
    ("9.1", HOLE, "known = torch.from_numpy(np.array(self.hole((size, size))))", "polarity"),
    ("9.1", HOLE, "known = 255 - torch.from_numpy(np.array(self.hole((size, size))))", "nothing between"),
    ("9.1", HOLE, "known = torch.from_numpy(np.array(self.mask.resize((size, size)))) < 128", "squares of the base"),
    ("9.1", HOLE, "known = torch.from_numpy(np.array(self.mask.resize((size, size), Image.NEAREST))) == 0",
     "squares of the base"),
    ("9.1", HOLE, "white = self.mask.resize((self.small, self.small), Image.BOX).resize((size, size), Image.NEAREST)\n"
     "        known = torch.from_numpy(np.array(white)) < 128", "squares of the base"),
    ("9.1", HOLE, HOLE.replace("self.hole((size, size))))", "self.hole((size, size)))).T"),
     "1 where the image is known"),
    ("9.1", MASKS, MASKS.replace("torch.float32", "torch.bool"), "float32"),
    ("9.1", MASKS, "known = known.to(device, torch.float32)[None, None]", "one of each"),
    ("9.1", MASKS, MASKS.replace("count, 1", "count, 3"), "one of each"),
    ("9.1", IMAGES, "return known, pixels(self.image, size).to(device).expand(count, -1, -1, -1)", "first the images"),
    ("9.1", IMAGES, IMAGES.replace("size).to", "self.small).to"), "one of each"),
    ("9.1", IMAGES, IMAGES.replace("pixels(self.image, size)", "(pixels(self.image, size) * known[:1])"),
     "the image is whole"),
    ("9.1", IMAGES, IMAGES.replace("pixels(self.image, size)", "(pixels(self.image, size) / 2 + 0.5)"),
     "values from -1 to 1"),
    ("9.1", IMAGES, IMAGES.replace("pixels(self.image, size)", "pixels(self.image, size).flip(1)"), "channels first"),
    ("9.1", IMAGES, IMAGES.replace("pixels(self.image, size)", "pixels(self.image, size).transpose(2, 3)"),
     "channels first"),
    # 9.2 sample_base
    ("9.2", GUIDED, "denoiser, grad_fn = model.denoiser, None", "classifier-free guidance"),
    ("9.2", GUIDED, GUIDED.replace("how.scale", "3.0"), "classifier-free guidance"),
    ("9.2", GUIDED, GUIDED.replace("how.scale", "1 + how.scale"), "classifier-free guidance"),
    ("9.2", GUIDED, GUIDED.replace("how.scale", "1 - how.scale"), "classifier-free guidance"),
    ("9.2", GUIDED, GUIDED.replace("model.denoiser, how", "guidance.classifier_free(model.denoiser, how.scale), how"),
     "applied once"),
    ("9.2", CLIP, CLIP.replace("denoiser, grad_fn = model.denoiser", "denoiser, grad_fn = denoiser"), "not combined"),
    ("9.2", CLIP, CLIP.replace(", how.scale", ", 3.0"), "times options.scale"),
    ("9.2", CLIP, CLIP.replace("clip.embed(prompts)", "clip.embed(prompts[:1])"), "similarity to the prompts"),
    ("9.2", CLIP, "denoiser = model.denoiser", "the gradient of the similarity"),
    ("9.2", PROCESS, PROCESS.replace("how.strength if init else 1.0", "how.strength"), "without an image to begin"),
    ("9.2", PROCESS, PROCESS.replace(", how.strength if init else 1.0", ""), "strength·t"),
    ("9.2", PROCESS, PROCESS.replace("how.strength if init", "1 - how.strength if init"), "strength·t"),
    ("9.2", PROCESS, PROCESS.replace("how.strength if init", "0.6 if init"), "strength·t"),
    ("9.2", PROCESS, PROCESS.replace("how.steps", '"25"'), "options.steps"),
    ("9.2", PROCESS, PROCESS.replace("how.steps", "None"), "options.steps"),
    ("9.2", PROCESS, PROCESS.replace("model.diffusion", 'replace(model.diffusion, schedule="linear")'), "guidance"),
    ("9.2", BASE_HOW, BASE_HOW.replace("options or default_options(model)", "options or Options('10')"),
     "None means default_options"),
    ("9.2", BASE_HOW, BASE_HOW.replace("options or default_options(model)", "default_options(model)"),
     "options.steps"),
    ("9.2", START, START.replace("generator)", "None)"), "from the generators"),
    ("9.2", START, START.replace("generator)", "generator[0] if isinstance(generator, list) else generator)"),
     "its own generator"),
    ("9.2", START, START + " * 0.997", "unit Gaussian noise"),
    ("9.2", START, START.replace("diffusion.gaussian(torch.empty", "torch.zeros").replace(", generator)", ""),
     "x_T is noise"),
    ("9.2", SKETCH, "pass", "x_T is the sketch"),
    ("9.2", SKETCH, "x_T = pixels(init, model.size).expand_as(x_T)", "x_T is the sketch"),
    ("9.2", SKETCH, SKETCH.replace("pixels(init, model.size)", "pixels(init, model.size).mul(127.5).add(127.5)"),
     "x_T is the sketch"),
    ("9.2", SKETCH, "x_T = pixels(init, model.size) + x_T", "x_T is the sketch"),
    ("9.2", NOISIEST, NOISIEST.replace("[-1]", "[0]"), "noised to the noisiest timestep"),
    ("9.2", SAMPLER, "sampler = process.ddim_sample", "names the sampler"),
    ("9.2", SAMPLE, SAMPLE.replace("x0_fn=x0_fn, ", ""), "it must reach the sampler"),
    ("9.2", SAMPLE, SAMPLE.replace("grad_fn=grad_fn, ", ""), "the gradient of the similarity"),
    ("9.2", SAMPLE, SAMPLE.replace("generator=generator, ", ""), "what the sampler draws"),
    ("9.2", SAMPLE, SAMPLE.replace("callback=callback,", ""), "the callback is handed on"),
    ("9.2", SAMPLE, SAMPLE.replace("**shown, ", ""), "only a model with inputs"),
    ("9.2", SAMPLE, SAMPLE.replace("encode(prompts)", "encode(prompts[:1] * len(prompts))"), "its own prompt"),
    ("9.2", SAMPLE, SAMPLE.replace("sampler(denoiser", "sampler(model.denoiser"), "classifier-free guidance"),
    ("9.2", SAMPLE, SAMPLE + ".clamp(-1, 1) * 0.99", "what is drawn"),
    ("9.2", BASE_KNOWN, BASE_KNOWN.replace("around_known(known, model, len(prompts))", "{}, None"),
     "it must reach the sampler"),
    ("9.2", BASE_KNOWN, BASE_KNOWN.replace("    denoiser, grad_fn", "    if known:\n        image, mask = known.at("
     "model.size, model.device, len(prompts))\n        x0_fn = inpaint.replace_known(image, 1 - mask)\n"
     "    denoiser, grad_fn"), "puts what is known"),
    ("9.2", BASE_KNOWN, BASE_KNOWN.replace("    denoiser, grad_fn", "    if known:\n        image, mask = known.at("
     "model.size, model.device, len(prompts))\n        shown = {'inpaint_image': image, 'inpaint_mask': 1 - mask}\n"
     "    denoiser, grad_fn"), "only a model with inputs"),
    # 9.3 sample_upsampler
    ("9.3", LARGE, LARGE.replace("upsample(model.denoiser,", "upsample(guidance.classifier_free(model.denoiser,"
                                 " how.scale),"), "not guided"),
    ("9.3", LARGE, LARGE.replace("x0_fn=x0_fn, ", ""), "puts what is known"),
    ("9.3", LARGE, LARGE.replace("**shown, ", ""), "that has inputs for it"),
    ("9.3", LARGE, LARGE.replace("callback=callback, ", ""), "the callback is handed on"),
    ("9.3", LARGE, LARGE.replace("generator=generator, ", "generator=None, "), "the generators"),
    ("9.3", LARGE, LARGE.replace("sampler=how.sampler,", ""), "options.sampler"),
    ("9.3", LARGE, LARGE.replace("how.steps", "'fast27'"), "options.steps"),
    ("9.3", LARGE, LARGE.replace("sampler=how.sampler", "sampler='ddpm' if known else how.sampler"),
     "as any other one"),
    ("9.3", LARGE, LARGE.replace("model.diffusion, how.steps", "model.diffusion"), "options.steps"),
    ("9.3", LARGE, LARGE.replace("how.steps)", "how.steps, 0.5)"), "options.steps"),
    ("9.3", LARGE, LARGE.replace("model.encode(prompts)", "model.encode([''] * len(prompts))"), "reads the prompts"),
    ("9.3", LARGE, LARGE.replace("low_res.to(model.device)", "diffusion.gaussian(low_res, generator)"),
     "conditions the upsampler"),
    ("9.3", LARGE, LARGE.replace("low_res.to(model.device)", "low_res.flip(3)"), "conditions the upsampler"),
    ("9.3", LARGE, LARGE.replace("around_known(known, model,", "around_known(known, replace(model, kind='upsampler'),"),
     "that has inputs for it"),
    ("9.3", LARGE, LARGE.replace("process=process,", "process=process, noise=1.0,"), "upsample with"),
    ("9.3", LARGE_HOW, LARGE_HOW.replace("options or default_options(model)", "options or Options()"),
     "None means default_options"),
    ("9.3", LARGE_HOW, LARGE_HOW.replace("options or default_options(model)", 'options or Options("fast27")'),
     "whose sampler is"),
    ("9.3", LARGE_HOW, LARGE_HOW.replace("options or default_options(model)", "default_options(model)"),
     "options.steps"),
    # 9.4 Model.from_saved
    ("9.4", NETWORK, "network = unet.UNet.from_saved(saved, path).train()\n        config", "eval mode"),
    ("9.4", NETWORK, 'network = unet.UNet(unet.config_from(unet.UNetConfig, saved["config"]))\n'
     '        network.load_state_dict(saved["weights"])\n        config', "eval mode"),
    ("9.4", NETWORK, 'network = unet.UNet(unet.config_from(unet.UNetConfig, saved["config"])).eval()\n        config',
     "answers ε"),
    ("9.4", DTYPE, "network = network.to(device)", "the dtype that is given"),
    ("9.4", DTYPE, "network = to_dtype(network, torch.bfloat16).to(device)", "stay float32"),
    ("9.4", DENOISER, "denoiser = network", "inputs that the network's channels are for"),
    ("9.4", DENOISER, "denoiser = upsample.denoiser_of(network, config)", "answers ε"),
    ("9.4", DENOISER, "denoiser = diffusion.to_eps(network, process)", "inputs that the network's channels are for"),
    ("9.4", DENOISER, "denoiser = upsample.denoiser_of(network, config, replace(process, schedule='cosine'))",
     "the file's own schedule"),
    ("9.4", SCHEDULE, "process = diffusion.DiffusionConfig()", "the file's own noise schedule"),
    ("9.4", SCHEDULE, 'process = diffusion.DiffusionConfig(saved["diffusion"]["schedule"])', "the file's own noise"),
    ("9.4", MODEL, MODEL.replace("KINDS[config.in_channels]", '"base"'), "input channels tell the kind"),
    ("9.4", MODEL, MODEL.replace("KINDS[config.in_channels]", "config.in_channels"), "input channels tell the kind"),
    ("9.4", MODEL, MODEL.replace("tokenizer.load_tokenizer(saved)", "tokenizer.world_tokenizer()"), "own merges"),
    ("9.4", MODEL, MODEL.replace("tokenizer.load_tokenizer(saved)", "tokenizer.BPETokenizer([])"), "own merges"),
    ("9.4", MODEL, MODEL.replace('saved.get("verbatim", False)', "True"), "what the model is"),
    ("9.4", MODEL, MODEL.replace('saved.get("verbatim", False)', "False"), "what the model is"),
    ("9.4", MODEL, MODEL.replace('saved["world"]', '"full"'), "what the model is"),
    ("9.4", MODEL, MODEL.replace('saved["size"]', "64"), "what the model is"),
]

# (exercise, what stands in the module, what replaces it): right, if unusual, solutions
VARIANTS = [
    ("9.1", HOLE, "known = 1 - torch.from_numpy(np.array(self.hole((size, size)))).double() / 255"),
    ("9.1", IMAGES, "return torch.cat([pixels(self.image, size)] * count), known.clone()"),
    ("9.2", SKETCH, "x_T = torch.cat([process.q_sample(pixels(init, model.size), t[:1], row[None]) for row in x_T])"),
    ("9.2", START, "x_T = torch.stack([diffusion.gaussian(torch.zeros(3, model.size, model.size), one) for one in "
     "generator])"),
    ("9.2", SAMPLE, "    x0_fn = x0_fn or (lambda x0: x0.clone())\n" + SAMPLE),
    ("9.3", LARGE, LARGE.replace("how.steps)", "how.steps, strength=1.0)")),
    ("9.4", DENOISER, '''wraps = {3: [], 6: [upsample.with_low_res], 7: [inpaint.with_known],
                 10: [upsample.with_low_res, inpaint.with_known]}
        denoiser = network
        for wrap in wraps[config.in_channels]:
            denoiser = wrap(denoiser)
        denoiser = diffusion.to_eps(denoiser, process)'''),
]
